"""`python -m mishika_migrate`, the same as the `mishika-migrate` command."""

from mishika_migrate.cli import main

main.main()
