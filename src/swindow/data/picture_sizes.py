"""Whether pictures are as large as their annotations say, by the headers of all, or of some where there are many."""

from swindow.data.annotated import other_size
from swindow.data.annotations import Faults
from swindow.errors import DataError
from swindow.images import ImageLimits, name_of, probe_image
from swindow.objects import Size

MOST_PROBED = 500  # a header takes a tenth of a millisecond; a PNG's, whose orientation may stand last, tens of them


class PictureSizes:
    """The size of each picture of one split, in the order of the source."""

    def __init__(self, count: int, faults: Faults, limits: ImageLimits) -> None:
        self.faults, self.limits = faults, limits
        self.step = 1 if faults.most is None else -(-max(count, 1) // MOST_PROBED)
        self.place = 0

    def of(self, picture: str, said: Size | None, file: str, where: str, *, quiet: bool = False) -> Size | None:
        """Height and width of the next picture, or None where it must be left out; `said` is what `file` has.

        `where` is what messages call its annotations; `quiet` of files that never have a size.
        """
        self.place += 1
        if said is not None and self.place % self.step:
            return said
        try:
            header = probe_image(picture, limits=self.limits)
        except DataError as error:
            if said is not None:
                return said  # who reads it says that it cannot be read
            self.faults.add("unreadable", picture, str(error).split("; ")[0], repair="replace it")
            return None
        size = header.height, header.width
        if said is None and not quiet:
            message = f"{where}: has no width and height, those of {name_of(picture)} are taken; add them"
            self.faults.tell("missing-size", file, message)
        if said is None or said == size:
            return size
        kind = "turned-size" if said == size[::-1] else "other-size"
        why, _, repair = other_size(picture, said, size).partition("; ")
        self.faults.add(kind, file, f"{where}: {why}", repair=repair)
        return None
