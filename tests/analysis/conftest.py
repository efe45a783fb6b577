import pytest

import report


@pytest.fixture
def printed(capsys):
    """printed(runs, flags...) -> what report.py prints."""
    def call(*argv):
        report.main([str(word) for word in argv])
        return capsys.readouterr().out

    return call
