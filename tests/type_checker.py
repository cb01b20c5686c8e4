"""How tests check annotations: as beartype does; whole numbers are floats."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
