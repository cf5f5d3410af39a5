"""Exported folders on their way to an object store."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger, RemoteUploaderDownloader

from spin_composer.distributed import from_rank_zero
from spin_composer.errors import EnvironmentFailure
from spin_composer.export.card import CARD, keep_card
from spin_composer.export.folder import FILES_OF_EXPORTS
from spin_composer.store.object_folder import with_retries

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Folder:
    path: Path
    files: Sequence[Path]
    """Of the folder, by relative paths, in the order in which they are uploaded."""


class Uploads:
    """The folders of an exporter that are uploaded, or wait until they can be; on rank 0.

    What the store does not take stays on the disk and is tried again later. It does not end the
    run at once: an iteration's checkpoint is saved after its export, and would be lost.

    Args:
        url: Of all exports, for messages.
        uploader: Composer's, whose client is used, and not its queue: a checkpoint would follow
            before the last file is there, and the run that a kill ends then would never write the
            folder again.
    """

    def __init__(self, url: str, uploader: RemoteUploaderDownloader):
        self._url, self._uploader = url, uploader
        self._owed: dict[str, _Folder] = {}

    def add(self, place: str, folder: Path) -> None:
        """Upload a folder, and those that are owed; it is removed once it is there.

        Args:
            place: Its name in the object store.
            folder: The only one in a folder of its own, which is removed with it.
        """
        files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        # The last one marks a folder that is whole.
        files.sort(key=lambda path: (str(path) in FILES_OF_EXPORTS, str(path)))
        if place in self._owed:  # an older export of the same name
            shutil.rmtree(self._owed[place].path.parent, ignore_errors=True)
        self._owed[place] = _Folder(folder, files)
        self.try_all()

    def try_all(self) -> None:
        """Upload all folders that are owed; a warning says which could not be uploaded."""
        for place, folder in list(self._owed.items()):
            try:
                self._upload(place, folder)
            except Exception as error:
                log.warning(
                    f"the export {place} is not in the object store yet, but in {folder.path}; it "
                    f"is tried again at the next export and as training ends: "
                    f"{error.__cause__ or error}"
                )
            else:
                del self._owed[place]
                shutil.rmtree(folder.path.parent)
                log.info("The policy was exported to %s", place)

    def require_all(self) -> None:
        """Check that no folder is owed.

        Raises:
            EnvironmentFailure: Names those that are.
        """
        if self._owed:
            owed = ", ".join(f"{place} (in {one.path})" for place, one in self._owed.items())
            raise EnvironmentFailure(
                f"{self._url} has not all exports: {owed}. The training has ended; upload these "
                "folders by hand."
            )

    def is_whole(self, place: str) -> bool:
        """Return whether the object store has a whole folder."""
        backend = self._uploader.remote_backend
        for mark in FILES_OF_EXPORTS:
            name = f"{place}/{mark}"
            with suppress(FileNotFoundError):
                with_retries(self._url, f"read ({name})", partial(backend.get_object_size, name))
                return True
        return False

    def _upload(self, place: str, folder: _Folder) -> None:
        before = folder.path.with_name("before")
        if not before.exists():
            self._download_card(place, before)
            keep_card(before, folder.path)
        for file in folder.files:
            name, path = f"{place}/{file.as_posix()}", folder.path / file
            put = partial(self._uploader.remote_backend.upload_object, name, path)
            with_retries(self._url, f"written ({name})", put)

    def _download_card(self, place: str, folder: Path) -> None:
        """Get the card of an earlier export from the object store, if there is one."""
        got, name = folder.with_name("card"), f"{place}/{CARD}"
        got.mkdir(exist_ok=True)
        get = partial(self._uploader.remote_backend.download_object, name, got / CARD, True)
        with suppress(FileNotFoundError):
            with_retries(self._url, f"read ({name})", get)
        got.rename(folder)


class RequireUploads(Callback):
    """Ends the run with an error if exports are owed, after all other callbacks have ended."""

    def __init__(self, uploads: Uploads):
        self._uploads = uploads

    def fit_end(self, state: State, logger: Logger) -> None:
        """See the class; a collective.

        Raises:
            EnvironmentFailure: Names the exports.
        """
        del state, logger
        from_rank_zero(self._uploads.require_all)
