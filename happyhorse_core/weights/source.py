"""Opening weights wherever they were downloaded to: a file, or a folder with an index and the shards that it names."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ..errors import CheckpointError
from .files import exists, is_folder, some, unreadable
from .json_file import INDEX_BYTES, read_object, shown
from .pickled import read_pickled
from .safetensors_file import SafetensorsFile
from .tensors import TensorEntry, TensorSource

__all__ = ["FileOpener", "Opener", "TensorEntry", "TensorSource", "open_source"]

FileOpener = Callable[[Path], SafetensorsFile | TensorSource]
"""Opens one safetensors file."""
Opener = Callable[..., TensorSource]
"""``open_source``, or what a host has in its place: takes a path and a keyword ``prefix``."""

_INDEX_SUFFIX = ".safetensors.index.json"
_PICKLE_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin")


def open_source(
    path: str | Path, *, prefix: str = "", mapped: bool = True, open_file: FileOpener | None = None
) -> TensorSource:
    """Opens a checkpoint and checks its files, without reading weights yet.

    ``path`` is a .safetensors file, a pickled .ckpt, .pth, .pt or .bin, an index (``*.safetensors.index.json``), or a
    folder that holds one index or else one .safetensors file. With a ``prefix``, only the tensors under it are
    there, named without it, and shards that hold none of them are not needed. ``mapped`` as for SafetensorsFile;
    ``open_file`` opens safetensors files in its place.

    Raises CheckpointError, naming the file, where something is missing, damaged or of another kind.
    """
    path = Path(path)
    open_file = open_file or partial(SafetensorsFile, mapped=mapped)
    file = _chosen_file(path)
    name = file.name.lower()
    if name.endswith(_INDEX_SUFFIX):
        source = _open_index(file, path, prefix, open_file)
    elif name.endswith(".safetensors"):
        source = _open_shards(path, {file: None}, open_file)
    elif name.endswith(_PICKLE_SUFFIXES):
        entries = read_pickled(file)
        source = TensorSource(path, entries)
    else:
        raise CheckpointError(
            f"{path}: found a file of an unknown kind; expected .safetensors, "
            f"{', '.join(_PICKLE_SUFFIXES)}, *{_INDEX_SUFFIX} or a folder."
        )
    if not prefix:
        return source
    part = source.sub(prefix)
    if not part.names:
        raise CheckpointError(f"{path}: no tensor's name begins with {prefix}; found {some(source.names)}.")
    return part


def index_names(path: Path) -> tuple[str, ...]:
    """The names of tensors in an index, or in a folder's one; none where there is no index. Errors as open_source."""
    file = _chosen_file(path)
    return tuple(_read_index(file)[0]) if file.name.lower().endswith(_INDEX_SUFFIX) else ()


def _chosen_file(path: Path) -> Path:
    return _file_of_folder(path) if is_folder(path) else path


def _file_of_folder(folder: Path) -> Path:
    """The one index of a folder, or else its one safetensors file."""
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    indexes = [name for name in names if name.lower().endswith(_INDEX_SUFFIX) and not name.startswith(".")]
    weights = [name for name in names if name.lower().endswith(".safetensors") and not name.startswith(".")]
    for candidates in (indexes, weights):
        if len(candidates) == 1:
            return folder / candidates[0]
    if indexes:
        raise CheckpointError(
            f"{folder}: found several indexes: {some(indexes)}. Give the path of the one that is meant."
        )
    if weights:
        raise CheckpointError(
            f"{folder}: found {some(weights)} but no index *{_INDEX_SUFFIX}. "
            "Download it too, or give the path of one file."
        )
    found = f"found {some(names)}" if names else "the folder is empty"
    raise CheckpointError(
        f"{folder}: {found}; expected one *{_INDEX_SUFFIX} with its shards, or one .safetensors file."
    )


def _open_index(index: Path, path: Path, prefix: str, open_file: FileOpener) -> TensorSource:
    weight_map, metadata = _read_index(index)
    wanted: dict[Path, list[str]] = {}
    for name, shard in weight_map.items():
        if name.startswith(prefix):
            wanted.setdefault(index.parent / shard, []).append(name)
    missing = [shard.name for shard in wanted if not exists(shard)]
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of the {len(wanted)} files that it names are missing: {some(missing)}. "
            f"Download them into {index.parent}."
        )
    source = _open_shards(path, wanted, open_file)
    source.metadata.update(metadata)
    return source


def _read_index(index: Path) -> tuple[dict[str, str], dict[str, str]]:
    content = read_object(index, INDEX_BYTES)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: found no weight_map; expected the file of each tensor in it. Download it again."
        )
    for name, shard in weight_map.items():
        if (
            not isinstance(shard, str)
            or not shard
            or shard != Path(shard).name
            or "\\" in shard
            or not shard.isprintable()
        ):
            raise CheckpointError(
                f"{index}: tensor {name}: found {shown(shard)}; expected the name of a file beside the index."
            )
    metadata = content.get("metadata")
    return weight_map, {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}


def _open_shards(path: Path, shards: Mapping[Path, Sequence[str] | None], open_file: FileOpener) -> TensorSource:
    """One source over several files, each with the names that must be in it; None asks for at least one tensor."""
    files = [open_file(shard) for shard in shards]
    entries: dict[str, TensorEntry] = {}
    indexed: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    for file, names in zip(files, shards.values(), strict=True):
        absent = [name for name in names or () if name not in file.entries]
        if absent:
            raise CheckpointError(
                f"{file.path}: {len(absent)} tensors that the index places here are missing: {some(absent)}. "
                "The index and the files are of different downloads."
            )
        # Tensors that the index forgot count too; of one that is in two files, the index says which is meant.
        indexed.update({name: file.entries[name] for name in names or ()})
        entries.update(file.entries)
        metadata.update(file.metadata)
    entries.update(indexed)
    if not entries:
        raise CheckpointError(f"{path}: found no tensors in it; expected weights. Download it again.")

    def close() -> None:
        for file in files:
            file.close()

    return TensorSource(path, entries, metadata=metadata, on_close=close)
