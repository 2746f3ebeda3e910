"""Your own videos with captions: a table of folders of frames and what is said of them (MSR-VTT, MSVD and kin).

    videos/video0/0001.jpg 0002.jpg ...         table: video,caption
    videos/video1/0001.jpg ...                         video0,a man plays the guitar

Video files are not decoded.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from transfer_run.data.images.caption_table import TableItems, captioned_splits
from transfer_run.data.images.image_data import FileImages
from transfer_run.data.images.image_text import Captioned
from transfer_run.data.images.video_text import VideoText
from transfer_run.data.reading.pictures import SUFFIXES, is_leftover
from transfer_run.errors import UserError


@dataclass(frozen=True)
class Frames(FileImages):
    """A video's frames in files of their own."""

    def locate(self, row: int) -> str:
        return f"{self.paths[row]}, frame {row + 1} of {len(self.paths)}"


@dataclass(frozen=True)
class TableVideos(TableItems):
    """Videos that a table names by their folders of frames."""

    @classmethod
    def key(cls, named: object, root: Path, where: str) -> str:
        """Its path; a table's reader takes names of digits alone for numbers."""
        if not isinstance(named, str | int) or named == "":
            raise UserError("A row names no video.", where=where, remedy="name the folder that holds its frames")
        named = str(named)
        folder = root / named
        if folder.is_file():
            raise UserError(
                f"{named!r} is a file; a video is read as a folder of its frames, video files are not decoded.",
                where=where,
                remedy=f"write its frames into a folder (ffmpeg -i {named} -vf fps=1 FOLDER/%05d.jpg) and name that",
            )
        if not folder.is_dir():
            raise UserError(
                f"There is no folder {named!r} in {root}.",
                where=where,
                remedy="repair the path, or name the folder that paths start from: dataset.video_folder=FOLDER",
            )
        if not any(_is_frame(file) for file in os.scandir(folder)):
            raise UserError(
                f"The folder {named!r} holds no images.",
                where=where,
                remedy=f"put the video's frames into it, files that end in {', '.join(SUFFIXES[:3])}, ...",
            )
        return named

    def frames(self, video: int) -> Frames:
        """Its frames by name, numbers in names as numbers: 2.jpg before 10.jpg."""
        files = [Path(file.path) for file in os.scandir(self.root / str(self.named(video))) if _is_frame(file)]
        return Frames(sorted(files, key=lambda file: _in_order(file.name)), self.labels[:1].repeat(len(files)))


class VideoCaptions(VideoText):
    """`dataset.path` is a table (.csv, .tsv, .json, .jsonl, .parquet) or a folder with tables named train, validation
    and test, each with a column of videos (folders of frame images, relative to `dataset.video_folder` or the tables'
    folder) and one of captions. A video with several captions has several rows, or a list of captions in one row.

    A split that is missing is taken from train, whole videos with all their captions (`dataset.split_shares`).
    """

    def read_pairs(self) -> dict[str, Captioned[TableVideos]]:
        return captioned_splits(self.dataset, "video", TableVideos, self.notes)


def _is_frame(file: os.DirEntry[str]) -> bool:
    return file.name.lower().endswith(SUFFIXES) and not is_leftover(file.name)


def _in_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]
