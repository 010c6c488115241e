"""Files of text, and folders of such files."""

import stat
from pathlib import Path

from runner.data.files import locate, regular_file
from runner.errors import ConfigError, show_path

_SUFFIX = ".txt"


def joined_text(path: str, key: str, encoding: str) -> str:
    """Read a text file, or the files of a folder, with a line break between two."""
    return "\n".join(read_text(file, encoding) for file in files_of(path, key))


def files_of(path: str, key: str) -> list[Path]:
    """List the files of a text. Raise ConfigError for a folder without any."""
    files = listed_files(path, key)
    if not files:
        raise ConfigError(
            f"{key} must be a text file or a folder of files *{_SUFFIX}, got {show_path(path)}, "
            f"which has none"
        )
    return files


def listed_files(path: str, key: str) -> list[Path]:
    """List the files of a text, which may be none."""
    root, mode = locate(path, "text file or a folder of text files", key)
    if not stat.S_ISDIR(mode):
        return [regular_file(path, key)]
    files = [file for file in root.rglob(f"*{_SUFFIX}") if file.is_file()]
    return sorted(files, key=lambda file: file.relative_to(root).parts)


def read_text(path: Path, encoding: str) -> str:
    """Read a text file. Raise ConfigError, with the byte's position, for another encoding."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{show_path(path)} cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except LookupError:
        raise ConfigError(
            f"data.encoding must be the name of an encoding, such as utf-8 or latin-1, got "
            f"{encoding}"
        ) from None
    except UnicodeError as error:
        place = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise ConfigError(
            f"{show_path(path)} is not in data.encoding={encoding}{place}; name its encoding, such "
            f"as latin-1 or utf-16"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
