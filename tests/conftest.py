"""Fixtures for tests in every folder."""

from tests.servers.fixtures import moto_of_session, moto_server, s3_server, weed_of_session

__all__ = ["moto_of_session", "moto_server", "s3_server", "weed_of_session"]
