"""The entry point of ``robust-agg``, which needs nothing but Python to say what is missing."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; exit code 2 where it is not installed, 130 after an early Ctrl-C."""
    try:
        from experiments.cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        missing = f"the command line needs {error.name}: pip install 'robust-agg[experiments]'"
        print(f"robust-agg: error: {missing}", file=sys.stderr)
        sys.exit(2)
    command()


if __name__ == "__main__":
    main()
