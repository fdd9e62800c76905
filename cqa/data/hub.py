"""Data sets of the Hugging Face hub that are cached already: from `hf://…` to the files of a split.

Both spellings of the hub's own libraries are read, `datasets/` in front or not:
    hf://owner/name[@revision][/config][:split]     as `load_dataset(name, config, split=…)`
    hf://datasets/owner/name[@revision]/some/file    one file, as pandas and duckdb spell it
Nothing is downloaded. What a config and a split are made of is read as `datasets` reads it: from
`configs` in the card, else from the names of files and folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

from cqa.errors import DataError
from cqa.reading import read_card_head

ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SPLITS = {  # words in the names of files and folders
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"(?P<stem>.*)-(?P<k>\d{5})-of-(?P<n>\d{5})(?P<rest>\..*)", re.DOTALL)
NAME = re.compile(
    r"hf:/+(?:datasets/)?(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/:]+|[^/:]+))?(?:/(?P<rest>[^:]+))?(?::(?P<split>[\w.-]+))?"
)


def is_hub(path: Path) -> bool:
    """Return whether a path is `hf://…` (which `Path` spells with one slash)."""
    return path.parts[:1] == ("hf:",)


def path_text(path: Path) -> str:
    """Return a path as it was given: with both slashes of `hf://`."""
    return f"hf://{'/'.join(path.parts[1:])}" if is_hub(path) else str(path)


def data_files(*paths: Path) -> list[Path]:
    """Return the files that paths stand for: themselves, or cached files of a split, in order.

    Raises:
        DataError: The data set is not cached, or not whole; it has no such config, split or file.
    """
    return [
        file
        for path in paths
        for file in (_Dataset.named(path).files() if is_hub(path) else [path])
    ]


@dataclass(frozen=True, slots=True)
class _Dataset:
    """A data set as it was named, and the folder that holds what is cached of it."""

    where: str
    repo: str
    revision: str | None
    rest: str | None  # a config, or a file
    split: str | None
    folder: Path

    @classmethod
    def named(cls, path: Path) -> _Dataset:
        where = path_text(path)
        found = NAME.fullmatch(where)
        if found is None:
            raise DataError(
                "expected hf://owner/name[@revision][/config][:split], or "
                "hf://datasets/owner/name/FILE, got another spelling",
                where=where,
            )
        revision = unquote(found["revision"]) if found["revision"] else None
        folder = _snapshot(found["repo"], revision, where)
        return cls(where, found["repo"], revision, found["rest"], found["split"], folder)

    def files(self) -> list[Path]:
        if self.rest and (self.folder / self.rest).is_file():
            return self._readable([self.rest])
        held = sorted(
            p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()
        )
        if self.rest and self.rest.endswith(ENDINGS):
            self._refuse(f"the file {self.rest} in the cache, got none", download=self.rest)
        splits = self._splits([name for name in held if not name.startswith(".")])
        split = self.split or (next(iter(splits)) if len(splits) == 1 else None)
        if split is None or split not in splits:
            got = ", ".join(f"`:{name}`" for name in splits) or "none in the cache"
            wanted = f"the split `{split}`" if split else "one split"
            self._refuse(f"{wanted}, got {got}", download=None if splits else "")
        return self._readable(splits[split])

    def _splits(self, held: list[str]) -> dict[str, list[str]]:
        """Return the files of each split of the config."""
        configs = self._configs()
        if configs:
            named = {str(c.get("config_name", "default")): c for c in configs}
            name = (
                self.rest
                or next(
                    (n for n, c in named.items() if c.get("default") is True),
                    "default" if "default" in named else None,
                )
                or (next(iter(named)) if len(named) == 1 else None)
            )
            if name not in named:
                got = ", ".join(f"`/{n}`" for n in named)
                self._refuse(f"a config of the data set, got {self.rest or 'none'}; it has {got}")
            config = named[name]
            inside = str(config.get("data_dir") or "").strip("/")
            under = [n for n in held if not inside or n.startswith(f"{inside}/")]
            data = config.get("data_files")
            return _by_words(under) if data is None else self._by_patterns(data, under, inside)
        if self.rest:
            held = [name for name in held if name.startswith(f"{self.rest}/")]
        return _by_words(held)

    def _configs(self) -> list[dict[str, Any]]:
        configs = read_card_head(self.folder, DataError).get("configs")
        return [c for c in configs if isinstance(c, dict)] if isinstance(configs, list) else []

    def _by_patterns(self, data: Any, held: list[str], inside: str) -> dict[str, list[str]]:
        if isinstance(data, str) or (
            isinstance(data, list) and not all(isinstance(entry, dict) for entry in data)
        ):
            data = {"train": data}
        if isinstance(data, list):
            data = {str(entry.get("split", "train")): entry.get("path") for entry in data}
        if not isinstance(data, dict):
            self._refuse(f"data_files of its card to name splits, got: {data!r:.80}")
        splits: dict[str, list[str]] = {}
        for split, patterns in data.items():
            several = patterns if isinstance(patterns, list) else [patterns]
            found: dict[str, None] = {}
            for pattern in several:
                whole = f"{inside}/{pattern}" if inside else str(pattern)
                matching = [n for n in held if _matches(n, whole.removeprefix("./"))]
                if not matching:
                    if self.split in (None, str(split)):
                        self._refuse(
                            f"the files {whole} of split `{split}` in the cache, got none",
                            download=whole,
                        )
                    break
                found |= dict.fromkeys(matching)
            splits[str(split)] = list(found)
        return splits

    def _readable(self, names: list[str]) -> list[Path]:
        """Return files in order; all of them must be read here, and no shard be missing."""
        for name in names:
            if not name.endswith(ENDINGS):
                self._refuse(f"files of {', '.join(ENDINGS)}, got {name}")
        missing = next(_missing_shards(names), None)
        if missing and not (self.rest and self.rest in names):
            self._refuse(
                f"every file of the split in the cache, got none of {missing}", download=""
            )
        return [self.folder / name for name in names]

    def _refuse(self, expected: str, *, download: str | None = None) -> NoReturn:
        raise DataError(
            f"expected {expected}",
            where=self.where,
            hint=None if download is None else _to_cache(self.repo, self.revision, download),
        )


def _snapshot(repo: str, revision: str | None, where: str) -> Path:
    """Return the folder of the cached snapshot; without a revision, of `main` or the only one."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True)
        )
    except (OSError, ValueError, HFValidationError):
        held = Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}" / "snapshots"
        folders = sorted(held.iterdir()) if held.is_dir() else []
    if revision is None and len(folders) == 1:  # as `load_dataset` leaves it: without a branch
        return folders[0]
    several = f", got {len(folders)} revisions: {', '.join(f.name[:12] for f in folders[:5])}"
    raise DataError(
        f"expected the data set {repo} in the cache{several if folders else ', got none'}",
        where=where,
        hint=_to_cache(repo, revision, "")
        + ("" if not folders else f"; or name one, as in hf://{repo}@{folders[0].name}"),
    ) from None


def _to_cache(repo: str, revision: str | None, file: str) -> str:
    """Return the command that fills the cache."""
    at = f" --revision {revision}" if revision else ""
    of = "" if not file else f" --include '{file}'" if "*" in file else f" {file}"
    return (
        f"nothing is downloaded here; to cache it: hf download {repo}{of} --repo-type dataset{at}"
    )


def _by_words(held: Iterable[str]) -> dict[str, list[str]]:
    """Return the files of each split as names tell it; one split where none does."""
    data = [n for n in held if n.endswith(ENDINGS) and Path(n).name != "dataset_infos.json"]
    for parts in (slice(-1, None), slice(0, -1)):  # in the files' names, else in the folders'
        splits = {
            split: found
            for split, words in SPLITS.items()
            if (found := [n for n in data if _has_word(n.split("/")[parts], words)])
        }
        if splits:
            return splits
    return {"train": data} if data else {}


def _has_word(parts: Iterable[str], words: tuple[str, ...]) -> bool:
    pattern = rf"(?:^|[-._ 0-9])(?:{'|'.join(words)})(?:[-._ 0-9]|$)"
    return any(re.search(pattern, part) for part in parts)


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern names a file; `*` stays within a folder, `**` does not."""
    names, patterns = name.split("/"), pattern.split("/")
    if "**" in patterns:
        k = patterns.index("**")
        rest = "/".join(patterns[k + 1 :])
        return (
            len(names) > k
            and _matches("/".join(names[:k]), "/".join(patterns[:k]))
            and any(_matches("/".join(names[j:]), rest) for j in range(k, len(names)))
        )
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def _missing_shards(names: Iterable[str]) -> Iterator[str]:
    """Yield the shards that a file's name says there are, and that are not there."""
    held = set(names)
    for name in held:
        if found := SHARD.fullmatch(name):
            for k in range(int(found["n"])):
                other = f"{found['stem']}-{k:05d}-of-{found['n']}{found['rest']}"
                if other not in held:
                    yield other
