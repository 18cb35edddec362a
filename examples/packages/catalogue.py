"""Prints the package index of the machine as catalogue items, one JSON object a line; progress goes to stderr.

`palate index packages` runs it as a script (`items.source` of app.yaml); `evaluation.py` imports it. It asks apt to
fetch its lists into a private folder, so the system's own lists, their languages and their lock stay untouched and no
root is needed. Needs nothing but the standard library and apt.

    catalogue.py [--cache DIR] [--lists DIR]

Exit status: 0 done, 3 the machine has no package index to read (the message says what to do).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FRESH_S = 24 * 3600
UPDATE_TIMEOUT_S = 300
NO_INDEX = 3
SYSTEM_LISTS = Path("/var/lib/apt/lists")
APT_HELPER = "/usr/lib/apt/apt-helper"
# The hooks are cleared because they clean up after the *system's* update, and fail for anybody but root.
APT_CONFIG = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::Languages;
Acquire::Languages {{ "en"; "ko"; }};
Acquire::GzipIndexes "false";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
APT::Update::Error-Mode "any";
Dir::State::Lists "{lists}";
Dir::Cache "{cache}";
"""


class NoIndex(Exception):
    """There is no package index to read; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """The newest version of one binary package. `size` is the size of the .deb in bytes."""

    name: str
    version: str
    short: str
    long: str
    md5: str
    section: str
    priority: str
    tags: tuple[str, ...]
    size: int


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def default_cache() -> Path:
    home = os.environ.get("PALATE_HOME")
    return (Path(home) if home else Path.home() / ".palate") / "cache" / "packages"


# --- fetching ---------------------------------------------------------------------------------------------------


def fetched_lists(cache: Path) -> Path:
    """The folder of apt's lists: a fresh cache as it is, else updated, else what there is. Raises NoIndex."""
    if shutil.which("apt-get") is None:
        raise NoIndex(
            "there is no apt-get on this machine: the packages example needs Debian or a system made from "
            "it; run it in a debian container, or serve the other examples"
        )
    lists, stamp = cache / "lists", cache / "updated"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second run waits here, then finds the cache fresh
        if stamp.exists() and 0 <= time.time() - stamp.stat().st_mtime < FRESH_S and package_files(lists):
            return lists
        say(f"apt: updating the package lists in {lists}")
        fault = update(lists, cache)
        if fault is None:
            stamp.touch()
            return lists
    for known, words in ((lists, "the lists fetched before"), (SYSTEM_LISTS, "the machine's own lists")):
        if package_files(known):
            say(f"warning: apt could not update every list ({fault}); using {words}")
            return known
    raise NoIndex(
        f"apt has no package lists and could not fetch them ({fault}): connect the machine to its package "
        "mirror, or check /etc/apt/sources.list*, then run this again"
    )


def update(lists: Path, cache: Path) -> str | None:
    """Runs `apt-get update` into `lists`; None if all went well, else the fault in one line."""
    config = cache / "apt.conf"
    config.write_text(APT_CONFIG.format(lists=lists.resolve(), cache=(cache / "apt").resolve()), encoding="utf-8")
    (cache / "apt").mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            ["apt-get", "-c", str(config), "-q", "update"],
            capture_output=True,
            text=True,
            timeout=UPDATE_TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {UPDATE_TIMEOUT_S} s"
    if done.returncode == 0 and package_files(lists):
        return None
    faults = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
    return (faults or ["E: no sources are configured"])[0][2:].strip()


def package_files(lists: Path) -> list[Path]:
    return list_files(lists, r"_Packages(\.\w+)?")


def list_files(lists: Path, pattern: str) -> list[Path]:
    """Files whose name ends in `pattern`, plain ones first where apt kept both."""
    if not lists.is_dir():
        return []
    return sorted(p for p in lists.iterdir() if p.is_file() and re.search(pattern + r"\Z", p.name))


# --- reading ----------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a list; compressed ones (lz4, xz, gz, …) go through apt's own decompressor."""
    if path.name.endswith(("_Packages", "_Translation-en", "_Translation-ko")):
        with path.open(encoding="utf-8", errors="replace") as plain:
            yield from plain
        return
    command = [APT_HELPER, "cat-file", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", errors="replace") as process:
        if process.stdout is not None:
            yield from process.stdout
    if process.returncode != 0:
        raise NoIndex(f"{path} cannot be read: delete it and run apt-get update")


def stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The paragraphs of a deb822 file: field (lower case) -> value, continuation lines joined by line feeds."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        line = line.rstrip("\n")
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t":
            if name:
                fields[name] += "\n" + line
        else:
            name, colon, value = line.partition(":")
            name = name.lower() if colon else ""
            if name:
                fields[name] = value.strip()
    if fields:
        yield fields


def clean_description(value: str) -> tuple[str, str]:
    """(short, long) of a Description field: the long one without its leading blanks; " ." is a paragraph's end.

    Lines of one paragraph are joined by blanks; lines indented further (lists, examples) stay lines of their own.
    """
    short, _, rest = value.partition("\n")
    out: list[str] = []
    joining = False
    for line in rest.splitlines():
        text = line.strip()
        verbatim = line.startswith("  ") or text.startswith(("* ", "- "))
        if text in (".", ""):
            out.append("")
            joining = False
        elif joining and not verbatim:
            out[-1] += " " + text
        else:
            out.append(text)
            joining = True
    return short.strip(), "\n".join(out).strip()


def version_key(version: str) -> tuple[Any, ...]:
    """Sorts as Debian Policy 5.6.12 orders versions: epoch, then parts; `~` sorts before the end, letters before
    other signs, numbers by value."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch) if epoch.isdigit() else 0, part_key(upstream), part_key(revision)


def part_key(part: str) -> tuple[Any, ...]:
    key: list[Any] = []
    for signs, digits in re.findall(r"([^0-9]*)([0-9]*)", part):
        # 0 ends every run of signs, so that `~` (-1) sorts below the end and all else above it.
        key += [(*(-1 if c == "~" else ord(c) if c.isalpha() else ord(c) + 256 for c in signs), 0), int(digits or 0)]
    return tuple(key)


def newest_packages(lists: Path) -> dict[str, Package]:
    """Package name -> its newest version, over all sources and architectures of the machine."""
    found: dict[str, Package] = {}
    for path in package_files(lists):
        for fields in stanzas(lines_of(path)):
            name = fields.get("package")
            if not name:
                continue
            old = found.get(name)
            version = fields.get("version", "")
            if old is None or (version != old.version and version_key(version) > version_key(old.version)):
                found[name] = package_of(name, version, fields)
    return found


def package_of(name: str, version: str, fields: Mapping[str, str]) -> Package:
    short, long = clean_description(fields.get("description", fields.get("description-en", "")))
    size = fields.get("size", "")
    return Package(
        name=name,
        version=version,
        short=short,
        long=long,
        md5=fields.get("description-md5", ""),
        section=fields.get("section", "unknown").rpartition("/")[2],
        priority=fields.get("priority", "optional"),
        tags=tuple(t.strip() for t in fields.get("tag", "").replace("\n", " ").split(",") if t.strip()),
        size=int(size) if size.isdigit() else 0,
    )


def translations(lists: Path, language: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(package, md5 of the English description) -> (short, long); also under (package, "") for the last one seen."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for path in list_files(lists, rf"_Translation-{language}(\.\w+)?"):
        for fields in stanzas(lines_of(path)):
            name, value = fields.get("package"), fields.get(f"description-{language}")
            if name and value:
                text = clean_description(value)
                found[name, fields.get("description-md5", "")] = text
                found[name, ""] = text
    return found


def read_items(lists: Path) -> Iterator[dict[str, Any]]:
    """The items, in the order of their names: `{"id", "fields", "attributes"}`."""
    packages = newest_packages(lists)
    english, korean = translations(lists, "en"), translations(lists, "ko")
    say(f"apt: {len(packages):,} packages, {sum((n, '') in korean for n in packages):,} with a Korean translation")
    for name in sorted(packages):
        package = packages[name]
        short, long = english.get((name, package.md5)) or english.get((name, "")) or (package.short, package.long)
        fields: dict[str, Any] = {
            "name": name,
            "short": short or package.short,
            "long": long or package.long,
            "section": package.section,
            "tags": list(package.tags),
            "size": package.size,
        }
        translated = korean.get((name, package.md5)) or korean.get((name, ""))
        if translated:
            fields["short_ko"], fields["long_ko"] = translated
        attributes = {"section": package.section, "size": package.size, "priority": package.priority}
        yield {"id": name, "fields": fields, "attributes": attributes}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache",
        type=Path,
        default=None,
        metavar="DIR",
        help="where apt's lists are kept (default: $PALATE_HOME/cache/packages)",
    )
    parser.add_argument(
        "--lists",
        type=Path,
        default=None,
        metavar="DIR",
        help="read the lists in this folder as they are, without asking apt",
    )


def lists_from(arguments: argparse.Namespace) -> Path:
    """The folder of apt's lists that the command line asks for. Raises NoIndex."""
    lists, cache = arguments.lists, arguments.cache or default_cache()
    try:
        lists = lists or fetched_lists(cache)
    except OSError as error:
        raise NoIndex(
            f"the cache folder {cache} cannot be used ({error.strerror}): make it writable, free some space, "
            "or name another one with --cache"
        ) from error
    if not package_files(lists):
        raise NoIndex(f"there is no *_Packages list in {lists}: name the folder of apt's lists")
    return Path(lists)


def print_lines(rows: Callable[[], Iterable[Any]], what: str, tell_every: int | None = None) -> int:
    """Print what `rows` gives, a JSON text each line, and say how many; the exit status. `tell_every`: progress too."""
    started = time.monotonic()
    count = 0
    try:
        for row in rows():
            print(json.dumps(row, ensure_ascii=False))
            count += 1
            if tell_every and count % tell_every == 0:
                say(f"packages: {count:,} written")
        sys.stdout.flush()
    except NoIndex as error:
        say(f"packages: {error}")
        return NO_INDEX
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    say(f"packages: {count:,} {what} in {time.monotonic() - started:.1f} s")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the package index of this machine as JSON lines.")
    add_arguments(parser)
    return print_lines(lambda: read_items(lists_from(parser.parse_args())), "items", tell_every=20_000)


if __name__ == "__main__":
    sys.exit(main())
