"""Annotations read from XML files of ASAP."""

import pytest

from bcss_jax import labels
from bcss_jax.errors import DataError
from bcss_jax.slides.annotations.slide_labels import open_slide_labels, read_annotations

SQUARE = [(0, 0), (10, 0), (10, 10), (0, 10)]


def annotation(group, points=SQUARE, kind="Polygon", orders=None):
    orders = range(len(points)) if orders is None else orders
    coordinates = "".join(
        f'<Coordinate Order="{order}" X="{x}" Y="{y}" />' for order, (x, y) in zip(orders, points, strict=True)
    )
    return (
        f'<Annotation Name="Annotation 0" Type="{kind}" PartOfGroup="{group}" Color="#64FE2E">'
        f"<Coordinates>{coordinates}</Coordinates></Annotation>"
    )


def write(tmp_path, *annotations, groups=()):
    listed = "".join(f'<Group Name="{name}" PartOfGroup="{parent}" Color="#64FE2E"><Attributes /></Group>'
                     for name, parent in groups)  # fmt: skip
    path = tmp_path / "a.xml"
    path.write_text(
        f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>{"".join(annotations)}</Annotations>'
        f"<AnnotationGroups>{listed}</AnnotationGroups></ASAP_Annotations>\n"
    )
    return path


def test_groups_are_classes_and_points_are_ordered(tmp_path):
    shuffled = annotation("invasive tumor", [SQUARE[2], SQUARE[0], SQUARE[3], SQUARE[1]], orders=[2, 0, 3, 1])
    spline = annotation("None", [(x + 20.5, y) for x, y in SQUARE], "Spline")
    rectangle = annotation("sub", kind="Rectangle")
    path = write(tmp_path, shuffled, spline, rectangle, groups=[("sub", "whole"), ("whole", "None")])
    found = read_annotations(path, (100, 100))  # ASAP does not count from the slide's bounds
    assert [each.names for each in found] == [("invasive tumor",), (), ("sub", "whole")]
    assert [each.area.area for each in found] == [100, 100, 100] and found[1].area.bounds == (20.5, 0, 30.5, 10)


def test_annotations_without_area_are_counted(tmp_path):
    said = []
    path = write(tmp_path, annotation("a"), annotation("a", SQUARE[:1], "Dot"), annotation("a", SQUARE, "PointSet"))
    assert len(read_annotations(path, warn=said.append)) == 1
    assert said == [f"{path}: 1 Dot, 1 PointSet are left out, because they have no area"]


CAMELYON = """
class_names = ["normal", "tumor"]
unannotated = "normal"

[colors]
normal = "#0072B2"
tumor = "#E69F00"

[annotations]
normal = ["_2", "Exclusion"]
tumor = ["_0", "_1", "metastases"]
"""


def test_holes_are_a_group_that_comes_first_in_the_scheme(tmp_path):
    (tmp_path / "camelyon.toml").write_text(CAMELYON)
    scheme = labels.read_scheme(tmp_path / "camelyon.toml")
    inner = [(2, 2), (4, 2), (4, 4), (2, 4)]
    path = write(tmp_path, annotation("_2", inner), annotation("_0"))
    with open_slide_labels(path, scheme, (20, 20), warn=lambda line: None) as truth:
        found = truth.labels(0, 0, 20, 20, 1)
    assert found.sum() == 100 - 4 and found[2:4, 2:4].sum() == 0
    assert truth.boxes.tolist() == [[0, 0, 20, 20]]


@pytest.mark.parametrize(
    "content, message",
    [
        ("<html></html>", "expected XML of ASAP with the root ASAP_Annotations, found: the root 'html'"),
        ("<ASAP_Annotations>", "found: no element found"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><ASAP_Annotations/>', "found: a document type or entities"),
        ("<ASAP_Annotations/>", "expected annotations with an area, found none"),
        (annotation("a", SQUARE[:2]), "annotation 1 (a): expected an outline, found a ring of 2 points"),
        (annotation("a", SQUARE, "Circle"), "expected the type Polygon, Spline, Rectangle, Dot"),
        (annotation("a", SQUARE, orders=[0, 1, 1, 2]), "coordinates whose Order is not 0, 1, 2"),
        (annotation("a", [*SQUARE, ("nan", 1)]), "found the coordinate ['4', 'nan', '1']"),
        (annotation("a", [*SQUARE, ("", 1)]), "found the coordinate ['4', '', '1']"),
        (annotation("a", [(0, 0), (9, 9), (9, 0), (0, 9)]), "expected an outline that does not cross itself"),
        (
            annotation("a") + '<Group Name="a" PartOfGroup="b"/><Group Name="b" PartOfGroup="a"/>',
            "'a' is part of itself",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, content, message):
    path = tmp_path / "a.xml"
    path.write_text(
        content if "ASAP" in content or "html" in content else f"<ASAP_Annotations>{content}</ASAP_Annotations>"
    )
    with pytest.raises(DataError) as caught:
        read_annotations(path)
    assert message in str(caught.value) and str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
