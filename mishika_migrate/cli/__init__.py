"""The command line, one module per family of commands. The only home of typer."""
