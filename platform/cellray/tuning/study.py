"""Where a sweep's own study lies: an SQLite file, with a copy beside checkpoints in a bucket."""

import logging
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pyarrow.fs import copy_files

from cellray.atlas.urls import is_remote
from cellray.core.errors import CellrayError
from cellray.core.secrets import first_line
from cellray.train.storage import file_system

FILE = "study.db"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyFile:
    """A study on this machine.

    Attributes
    ----------
    file
        Optuna writes to it; a bucket's it could not.
    folder
        Where a copy is kept, so that the sweep can be resumed from another machine; None where
        the file itself lies beside the checkpoints.
    """

    file: Path
    folder: str | None

    @classmethod
    def of(cls, storage: str, run_id: str) -> Self:
        """Give the place of a sweep's study.

        Parameters
        ----------
        storage
            Where the sweep's checkpoints go.
        run_id
            The sweep's run.
        """
        if not is_remote(storage):
            return cls(Path(storage) / run_id / FILE, None)
        return cls(Path.cwd() / ".cellray" / "sweeps" / run_id / FILE, f"{storage}/{run_id}")

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of the file."""
        return f"sqlite:///{self.file}"

    def make_room(self) -> None:
        """Make the folder of a study that begins."""
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def keep(self) -> None:
        """Renew the copy; where that fails the sweep goes on, and the next one is whole again."""
        if self.folder is None:
            return
        with tempfile.TemporaryDirectory(prefix="cellray-") as scratch:
            whole = Path(scratch) / FILE
            with closing(sqlite3.connect(self.file)) as of, closing(sqlite3.connect(whole)) as to:
                of.backup(to)  # what is being written is waited for
            system, path = file_system(self.folder)
            try:
                copy_files(str(whole), f"{path}/{FILE}", destination_filesystem=system)
            except OSError as error:
                logger.warning("the study could not be copied to %s: %s", self.folder, error)

    def fetch(self) -> None:
        """Take the copy where this machine has no file.

        Raises
        ------
        CellrayError
            The bucket cannot be read.
        """
        if self.folder is None or self.file.exists():
            return
        try:
            system, path = file_system(self.folder)
            if system.get_file_info(f"{path}/{FILE}").is_file:
                self.make_room()
                whole = self.file.with_suffix(".part")  # a copy that is cut off is no study
                copy_files(f"{path}/{FILE}", str(whole), source_filesystem=system)
                whole.replace(self.file)
        except OSError as error:
            raise CellrayError(
                f"the study in {self.folder} cannot be read: {first_line(error)}",
                "check the endpoint, the credentials and the bucket",
            ) from error
