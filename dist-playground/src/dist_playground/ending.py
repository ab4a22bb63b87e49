"""End a rank's process at once, whether its work was done or went wrong.

Why not just return: gloo's threads free the tensors of the last collective, and need Python's GIL
for it. DTensor's caches keep the process group, and so these threads, alive until Python shuts
down, and a thread that asks a closing Python for its GIL hangs or aborts the process (seen with
four ranks on two cores, one run in ten). A rank that ends without Python's shutdown cannot.
"""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from dist_playground.errors import UsageError

__all__ = ["run_and_exit"]


def run_and_exit(main: Callable[[], None]) -> NoReturn:
    """Call `main`, then end this process: 0 when it returned, 1 when it raised.

    A UsageError is printed as one line, anything else with its traceback.
    """
    code = 1
    try:
        main()
        code = 0
    except UsageError as error:
        rank = os.environ.get("RANK")
        print(f"{f'[rank {rank}] ' if rank else ''}error: {error}", file=sys.stderr)
    except (Exception, KeyboardInterrupt):
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
