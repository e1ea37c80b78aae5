"""Pairs the files in one folder with the labels in another, by name only.

The files are images, or predictions, which are scored.
"""

import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mapseg.files import name_text, printable, walk

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_SUFFIXES = (".png",)


@dataclass(frozen=True)
class Pair:
    """An image and its label.

    Attributes:
      key: the image's path in its folder, without suffix.
      image_path: the image, or the prediction, which is an image of ids.
      label_path: the label.
    """

    key: str
    image_path: Path
    label_path: Path


@dataclass(frozen=True)
class Suffixes:
    """How the names of images and labels end; the rest of the name must be equal in a pair.

    Attributes:
      image: such as `_leftImg8bit.png`; empty for any of `kinds`.
      label: such as `_gtFine_labelIds.png`; empty for any of `LABEL_SUFFIXES`.
      noun: what messages call the images; `--<noun>_suffix` is the flag.
      kinds: suffixes of the images.
    """

    image: str = ""
    label: str = ""
    noun: str = "image"
    kinds: tuple[str, ...] = IMAGE_SUFFIXES

    def __post_init__(self) -> None:
        for noun, suffix, kinds in (
            (self.noun, self.image, self.kinds),
            ("label", self.label, LABEL_SUFFIXES),
        ):
            if suffix and not suffix.lower().endswith(kinds):
                raise ValueError(
                    f"{noun}_suffix must be the end of file names, with {' or '.join(kinds)}; got "
                    f"{suffix}"
                )

    @property
    def ends(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The possible ends of the names of images and of labels."""
        return (
            (self.image,) if self.image else self.kinds,
            (self.label,) if self.label else LABEL_SUFFIXES,
        )


class Matches(NamedTuple):
    """The result of `match_files`.

    Attributes:
      pairs: by ascending key.
      without_label: the reason for each image without a label, by key.
      wrong: the reason for each other file without a pair, by key: a label without an image, two
        files with the same key, a broken link, a name that is not UTF-8.
    """

    pairs: tuple[Pair, ...]
    without_label: dict[str, str]
    wrong: dict[str, str]


def find_pairs(
    image_dir: Path, label_dir: Path, suffixes: Suffixes | None = None
) -> tuple[tuple[Pair, ...], dict[str, str]]:
    """Pairs images and labels that must all have a partner; see `match_files`.

    Returns:
      The pairs by ascending key, and the reason for each unpaired file by key.
    """
    pairs, without_label, wrong = match_files(image_dir, label_dir, suffixes or Suffixes())
    return pairs, dict(sorted({**without_label, **wrong}.items()))


def match_files(image_dir: Path, label_dir: Path, suffixes: Suffixes) -> Matches:
    """Pairs the images in one folder with the labels in another.

    Names are compared in NFC form, because macOS writes an umlaut as two characters. Hidden
    files and folders and other suffixes are ignored.

    Args:
      image_dir: images, also in sub-folders.
      label_dir: PNG labels, under the same relative paths.
      suffixes: how their names end; with suffixes, both folders may be the same.

    Raises:
      FileNotFoundError: a folder does not exist.
      ValueError: there is no image, or both folders are the same and no suffix is given.
    """
    noun, (image_ends, label_ends) = suffixes.noun, suffixes.ends
    for folder in (image_dir, label_dir):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    one_folder = image_dir.resolve() == label_dir.resolve()
    if one_folder and not (suffixes.image or suffixes.label):
        raise ValueError(
            f"{image_dir}: {noun}s and labels must differ in folder or suffix; got one folder. "
            f"Remedy: give --{noun}_suffix and --label_suffix, the ends of their names, or another "
            "folder"
        )
    # In one folder `a.png` may be the image of `a_mask.png`: the longest matching suffix decides.
    images, wrong_images = _files_by_key(image_dir, image_ends, label_ends if one_folder else ())
    labels, wrong_labels = _files_by_key(label_dir, label_ends, image_ends if one_folder else ())
    if not images and not wrong_images:
        raise ValueError(
            f"{image_dir}: must contain {noun}s ({', '.join(image_ends)}); got {listing(image_dir)}"
        )
    single_images = [images[name] for name in images.keys() - labels.keys() - wrong_labels.keys()]
    single_labels = [labels[name] for name in labels.keys() - images.keys() - wrong_images.keys()]
    wrong = {
        **_without_partner(single_labels, noun, label_dir, image_dir, (label_ends, image_ends)),
        **wrong_labels,
        **wrong_images,
    }
    pairs = (
        Pair(_cut(images[name], image_dir, image_ends), images[name], labels[name])
        for name in images.keys() & labels.keys() - wrong.keys()
    )
    return Matches(
        tuple(sorted(pairs, key=lambda pair: pair.key)),
        _without_partner(single_images, "label", image_dir, label_dir, (image_ends, label_ends)),
        dict(sorted(wrong.items())),
    )


def listing(folder: Path) -> str:
    """Lists a few entries of a folder."""
    return ", ".join(sorted(printable(p.name) for p in folder.iterdir())[:8]) or "an empty folder"


def _files_by_key(
    folder: Path, ends: Sequence[str], other_ends: Sequence[str]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Finds the files with one of these endings, unless a longer one of `other_ends` matches.

    Returns:
      The files by key in NFC form, and the reason for each unusable file by key.
    """
    files: dict[str, Path] = {}
    wrong: dict[str, str] = {}
    for path in walk(folder):
        name = name_text(path.name)
        length = _end_length(name, ends)
        if not length or _end_length(name, other_ends) > length:
            continue
        key, shown = _one_form(_cut(path, folder, ends)), printable(path)
        if not _is_utf8(name_text(path.relative_to(folder))):
            wrong[printable(key)] = f"{shown}: the name must be UTF-8 text; got other bytes"
            continue
        if key in files:
            other = printable(files[key].name)
            wrong[key] = f"{shown}: must be the only file of its stem; got also {other}"
        elif not path.is_file():
            kind = "a broken link" if path.is_symlink() else "a pipe, socket or device"
            wrong[key] = f"{shown}: must be a file; got {kind}"
        files.setdefault(key, path)
    return files, wrong


def _end_length(name: str, ends: Sequence[str]) -> int:
    """Returns the length of the longest of these endings that a name has; 0 if it has none."""
    return max((len(end) for end in ends if name.lower().endswith(end.lower())), default=0)


def _cut(path: Path, folder: Path, ends: Sequence[str]) -> str:
    """Returns the path relative to a folder, without its ending or, if none matches, its suffix."""
    relative = name_text(path.relative_to(folder))
    end = _end_length(name_text(path.name), ends) or len(name_text(path.suffix))
    return relative[: -end or None]


def _without_partner(
    paths: Sequence[Path],
    partner: str,
    folder: Path,
    partner_dir: Path,
    ends: tuple[Sequence[str], Sequence[str]],
) -> dict[str, str]:
    """Returns, by key, the partner that each file lacks and any similar files."""
    if not paths:
        return {}
    file_ends, partner_ends = ends
    near: dict[str, str] = {}  # names of possible partners, by key without case
    others = []  # (path without case, name) of files that do not end as partners do
    for path in walk(partner_dir):
        if _end_length(name_text(path.name), partner_ends):
            key = _one_form(_cut(path, partner_dir, partner_ends))
            near.setdefault(key.casefold(), printable(path.name))
        else:
            relative = _one_form(name_text(path.relative_to(partner_dir)))
            others.append((relative.casefold(), printable(path.name)))
    others.sort()
    reasons = {}
    for path in paths:
        key = _one_form(_cut(path, folder, file_ends))
        expected = " or ".join(printable(f"{key}{end}") for end in partner_ends)
        start = f"{key}{partner_ends[0][0]}".casefold()
        like = [name for name in _starting_with(others, start) if name != printable(path.name)]
        got = "none"
        if key.casefold() in near:
            got = f"{near[key.casefold()]}, whose name differs in upper and lower case"
        elif like:
            got = f"{', '.join(like)}, but only *{', *'.join(partner_ends)} are read"
        reasons[key] = (
            f"{printable(path)}: must have the {partner} {expected} in {partner_dir}; got {got}"
        )
    return reasons


def _starting_with(files: Sequence[tuple[str, str]], start: str) -> Iterator[str]:
    """Yields the names of those files, of ascending (path, name), whose paths start like this."""
    for i in range(bisect_left(files, (start, "")), len(files)):
        path, name = files[i]
        if not path.startswith(start):
            return
        yield name


def _one_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
