"""Preprocessing split over machines: each writes the scenes of a shard, a set of its own, and a merge lists all."""

import re
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data.scene import read_scene_list
from utils.errors import InputError
from utils.files import read_json, read_text, write_text
from utils.lock import only_writer
from utils.text import printable, shown

_FOLDER = re.compile(r"shard_(\d{1,6})_of_(\d{1,6})", re.ASCII)
# As many as their folders' names have digits for.
MOST_SHARDS = 999_999
# Missing shards that a message names.
_SHOWN = 8


@dataclass(frozen=True)
class Shard:
    """Every `count`-th scene, in the order that hashes of the names give; `number` is from 0 to `count` - 1."""

    number: int = 0
    count: int = 1

    def holds(self, key: str) -> bool:
        """Whether a scene belongs to it: a function of the scene's name alone."""
        return zlib.crc32(key.encode(errors="surrogatepass")) % self.count == self.number

    @property
    def folder(self) -> str:
        """What the folder of its scenes is called in that of the split."""
        return f"shard_{self.number}_of_{self.count}"


def find_shards(root: Path) -> list[Shard]:
    """The shards that have a folder in that of a split."""
    found = [_FOLDER.fullmatch(path.name) for path in root.glob("shard_*_of_*") if path.is_dir()]
    return sorted((Shard(int(match[1]), int(match[2])) for match in found if match), key=lambda shard: shard.number)


def check_shard_fits(root: Path, shard: Shard | None) -> None:
    """Raises InputError if a split's folder was begun in another way: whole (None), or in another number of shards."""
    name = printable(str(root))
    others = [other for other in find_shards(root) if shard is None or other.count != shard.count]
    if others:
        asked = "no --num_shards is given" if shard is None else f"--num_shards is {shard.count}"
        raise InputError(f"{name} holds {others[0].folder}, but {asked}: go on as it began, or name another folder")
    if shard is not None and (root / "metadata").exists():
        raise InputError(f"{name} holds scenes of a run without --num_shards: name another folder")


def merge_shards(root: Path, named: str) -> tuple[int, dict[str, str]]:
    """List the scenes of all shards of a split in its `full_list.txt`, and what was lost in its `lost.json`.

    Args:
        root: the folder of the split, which holds the shards.
        named: what named it, for messages.

    Returns:
        how many scenes there are, and what was lost.

    Raises:
        InputError: a shard is missing or still being written, shards are of different numbers of them, or one holds a
            scene of another.
    """
    shards = _all_shards(root)
    with ExitStack() as stack:
        for folder in (root, *(root / shard.folder for shard in shards)):
            stack.enter_context(only_writer(folder, named))
        scenes = {path.stem: path for shard in shards for path in _scenes(root, shard)}
        lost = {name: reason for shard in shards for name, reason in _lost(root / shard.folder).items()}
        lines = (scenes[key].relative_to(root).as_posix() for key in sorted(scenes))
        write_text(root / "full_list.txt", "".join(f"{line}\n" for line in lines))
    return len(scenes), lost


def _all_shards(root: Path) -> list[Shard]:
    """The shards of a split, whose lists are all there."""
    shards = find_shards(root)
    name = printable(str(root))
    if not shards:
        raise InputError(f"{name} holds no shards: runs with --num_shards and --shard write them")
    check_shard_fits(root, shards[0])
    wanted = [Shard(number, shards[0].count) for number in range(shards[0].count)]
    missing = [shard.folder for shard in wanted if not (root / shard.folder / "full_list.txt").is_file()]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise InputError(f"not finished in {name}: {', '.join(missing[:_SHOWN])}{more}: run or copy them, then merge")
    return wanted


def _scenes(root: Path, shard: Shard) -> list[Path]:
    """The metadata files of a shard."""
    path = root / shard.folder / "full_list.txt"
    # A shard may have no scene, while a list for training may not be empty.
    scenes = read_scene_list(path) if read_text(path).strip() else []
    for scene in scenes:
        if scene.parent != root / shard.folder / "metadata":
            raise InputError(f"{printable(str(path))} names {shown(str(scene), 200)}, which is not of this shard")
        if not shard.holds(scene.stem):
            raise InputError(
                f"{printable(str(scene))} belongs to another shard: remove it there, or make {shard.folder} anew"
            )
    return scenes


def _lost(folder: Path) -> dict[str, str]:
    """What a shard says of losses."""
    path = folder / "lost.json"
    if not path.exists():
        return {}
    lost = read_json(path, "list of losses")
    if not isinstance(lost, dict) or not all(isinstance(reason, str) for reason in lost.values()):
        raise InputError(f"{printable(str(path))} is not a list of losses: run the shard again")
    return lost
