"""`python -m unimo_ds.doctor`, as every launcher starts a module."""

from unimo_ds import distributed
from unimo_ds.doctor import main

if __name__ == "__main__":
    distributed.leave(main())
