"""Plans are the same on every machine that runs the tests: a processor is the typical one, whatever it can do."""

from collections.abc import Iterator

import pytest

from tests.support.rates import typical_processor


@pytest.fixture(scope="session", autouse=True)
def typical_rates() -> Iterator[None]:
    with typical_processor():
        yield
