import time


def test_time(source_url, target_url, run):
    ends = ("--source", source_url, "--target", target_url)
    for c in (
        ("copy", "--follow", "--everything", "--yes"),
        ("follow", "status"),
        ("cutover", "--dry-run"),
        ("cutover", "--yes", "--on-switch", "true"),
        ("follow", "status"),
        ("rollback", "--yes"),
        ("cutover", "--yes"),
        ("rollback", "--yes", "--on-switch", "true"),
        ("complete", "--yes"),
    ):
        t = time.monotonic()
        done = run(*c, *ends)
        print("=====", c, done.status, time.monotonic() - t)
        print(done.out)
        print(done.err)
