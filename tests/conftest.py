"""Fixtures: a mesh of stubs for each test that asks, and one mesh with the real model for the whole run."""

import os

import pytest

import kit


def need(path, what, how):
    if not path or not os.access(path, os.R_OK):
        pytest.skip(f"{what} is missing: {how}")


@pytest.fixture
def stub(tmp_path):
    """A stub on its own, for tests of the tools themselves."""
    need(kit.LOADTEST, "shoal-loadtest", "set SHOAL_LOADTEST_BIN")
    stub = kit.Stub(tmp_path / "stub")
    yield stub
    stub.stop()


@pytest.fixture
def mesh(tmp_path):
    """An empty mesh, to be filled by the test."""
    need(kit.SHOAL, "shoal", "set SHOAL_BIN")
    need(kit.LOADTEST, "shoal-loadtest", "set SHOAL_LOADTEST_BIN")
    mesh = kit.Mesh(tmp_path)
    yield mesh
    mesh.close()


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    """Three nodes and three stub devices that serve one model, shared by a module that harms none of them."""
    need(kit.SHOAL, "shoal", "set SHOAL_BIN")
    need(kit.LOADTEST, "shoal-loadtest", "set SHOAL_LOADTEST_BIN")
    mesh = kit.Mesh(tmp_path_factory.mktemp("trio"))
    try:
        mesh.fill()
        yield mesh
    finally:
        mesh.close()


@pytest.fixture(scope="session")
def dev(tmp_path_factory):
    """`shoal dev` with the real model, shared by every test that only asks."""
    need(kit.SHOAL, "shoal", "set SHOAL_BIN")
    need(kit.MODEL, "the real model", "set SHOAL_TEST_MODEL to a GGUF file")
    dev = kit.Dev(tmp_path_factory.mktemp("dev"))
    yield dev
    dev.stop()
