from __future__ import annotations

from piccolod.leadership.resources import RESOURCE_KERNEL, app_of, resource_for_app


def test_an_apps_resource_gives_its_name_back() -> None:
    assert resource_for_app("notes") == "app:notes" and app_of("app:notes") == "notes"


def test_the_kernel_and_nonsense_are_no_apps() -> None:
    assert [app_of(resource) for resource in (RESOURCE_KERNEL, "", "app:", "appx:notes")] == [None] * 4
