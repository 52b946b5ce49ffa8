"""`python -m dred` is `dred`."""

from dred.jobs.cli import main

if __name__ == "__main__":
    main(prog_name="dred")
