"""Pairs the images in one folder with the labels in another, by name only."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mapseg.files import name_text, printable, walk

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_SUFFIXES = (".png",)


@dataclass(frozen=True)
class Pair:
    """An image and its label. The key is the image's path in its folder, without suffix."""

    key: str
    image_path: Path
    label_path: Path


@dataclass(frozen=True)
class Suffixes:
    """How the names of images and labels end; the rest of the name must be equal in a pair.

    Attributes:
      image: such as `_leftImg8bit.png`; empty for any of `IMAGE_SUFFIXES`.
      label: such as `_gtFine_labelIds.png`; empty for any of `LABEL_SUFFIXES`.
    """

    image: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        for name, suffix, kinds in (
            ("image_suffix", self.image, IMAGE_SUFFIXES),
            ("label_suffix", self.label, LABEL_SUFFIXES),
        ):
            if suffix and not suffix.lower().endswith(kinds):
                raise ValueError(
                    f"{name} must be the end of file names, with {' or '.join(kinds)}; got {suffix}"
                )


def find_pairs(
    image_dir: Path, label_dir: Path, suffixes: Suffixes | None = None
) -> tuple[tuple[Pair, ...], dict[str, str]]:
    """Pairs the images in one folder with the labels in another.

    Names are compared in NFC form, because macOS writes an umlaut as two characters. Hidden
    files and folders and other suffixes are ignored.

    Args:
      image_dir: JPEG or PNG images, also in sub-folders.
      label_dir: PNG labels, under the same relative paths.
      suffixes: how their names end; with suffixes, both folders may be the same.

    Returns:
      The pairs by ascending key; and the reason for each unpaired file, by key: an image without a
      label, a label without an image, two files with the same key, a broken link, a name that is
      not UTF-8.

    Raises:
      FileNotFoundError: a folder does not exist.
      ValueError: there is no image, or both folders are the same and no suffix is given.
    """
    suffixes = suffixes or Suffixes()
    image_ends = (suffixes.image,) if suffixes.image else IMAGE_SUFFIXES
    label_ends = (suffixes.label,) if suffixes.label else LABEL_SUFFIXES
    for folder in (image_dir, label_dir):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    one_folder = image_dir.resolve() == label_dir.resolve()
    if one_folder and suffixes == Suffixes():
        raise ValueError(
            f"{image_dir}: images and labels must differ in folder or suffix; got one folder. "
            "Remedy: give --image_suffix and --label_suffix, the ends of their names, or another "
            "folder"
        )
    # In one folder `a.png` may be the image of `a_mask.png`: the longest matching suffix decides.
    images, wrong_images = _files_by_key(image_dir, image_ends, label_ends if one_folder else ())
    labels, wrong_labels = _files_by_key(label_dir, label_ends, image_ends if one_folder else ())
    if not images and not wrong_images:
        raise ValueError(
            f"{image_dir}: must contain images ({', '.join(image_ends)}); got {listing(image_dir)}"
        )
    single_images = [images[name] for name in images.keys() - labels.keys() - wrong_labels.keys()]
    single_labels = [labels[name] for name in labels.keys() - images.keys() - wrong_images.keys()]
    wrong = {
        **_without_partner(single_labels, "image", label_dir, image_dir, (label_ends, image_ends)),
        **_without_partner(single_images, "label", image_dir, label_dir, (image_ends, label_ends)),
        **wrong_labels,
        **wrong_images,
    }
    pairs = (
        Pair(_cut(images[name], image_dir, image_ends), images[name], labels[name])
        for name in images.keys() & labels.keys() - wrong.keys()
    )
    return tuple(sorted(pairs, key=lambda pair: pair.key)), dict(sorted(wrong.items()))


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
    """Returns, by key, the partner that each file lacks and any similar file."""
    if not paths:
        return {}
    file_ends, partner_ends = ends
    near: dict[str, Path] = {}
    for path in walk(partner_dir):
        near.setdefault(_one_form(_cut(path, partner_dir, partner_ends)).casefold(), path)
    reasons = {}
    for path in paths:
        key = _one_form(_cut(path, folder, file_ends))
        similar = near.get(key.casefold())
        got = "none"
        if similar is not None and similar != path:
            has_end = _end_length(name_text(similar.name), partner_ends)
            got = f"{printable(similar)}, " + (
                "whose name differs in upper and lower case"
                if has_end
                else f"but only {', '.join(partner_ends)} are read"
            )
        reasons[key] = (
            f"{printable(path)}: must have the {partner} of the same name in {partner_dir}; "
            f"got {got}"
        )
    return reasons


def _one_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
