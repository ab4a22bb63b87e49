"""python -m infra_bench {readme,use,run,show} ...: what is done with records after a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .load import load
from .progress import make_console
from .readme import render, use, write
from .record import RecordError
from .selection import MarkerError
from .suite import run_suite
from .terminal import print_record


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "readme":
            return _readme(options.files, options.check)
        if options.command == "use":
            for line in use(options.record, options.files):
                print(line)
            return _readme(options.files, check=False)
        if options.command == "run":
            return run_suite(options.folders, options.out, options.quick, make_console())
        print_record(load(options.record), make_console())
    except (RecordError, MarkerError, OSError) as fault:
        print(f"infra_bench: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("infra_bench: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra_bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    readme = commands.add_parser("readme", help="fill the markers of Markdown files from records")
    readme.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    readme.add_argument("files", nargs="+", type=Path)
    newer = commands.add_parser("use", help="show a newer record of the same package and machine")
    newer.add_argument("record", type=Path)
    newer.add_argument("files", nargs="+", type=Path)
    suite = commands.add_parser("run", help="run the benchmark.py of several folders")
    suite.add_argument("folders", nargs="+", type=Path)
    suite.add_argument("--out", required=True, type=Path, help="folder for records and report.md")
    suite.add_argument("--quick", action="store_true", help="sizes that suit a laptop")
    show = commands.add_parser("show", help="print a record")
    show.add_argument("record", type=Path)
    return parser


def _readme(files: list[Path], check: bool) -> int:
    failed = False
    for path in files:
        page = render(path)
        for fault in page.faults:
            print(f"infra_bench: {fault}", file=sys.stderr)
        if check:
            for drift in page.drifted:
                print(f"infra_bench: {drift}", file=sys.stderr)
        elif not page.faults:
            write(page)
        failed |= bool(page.faults or (check and page.drifted))
    if failed and check:
        print("infra_bench: `python -m infra_bench readme` rewrites what drifted", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
