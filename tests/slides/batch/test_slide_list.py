"""Lists of slides in the forms that programs save, shards, and names of folders."""

from pathlib import Path

import pytest

from bcss_jax.common.files import portable_stem
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.slides.batch.slide_list import Entry, check_name, read_list, shard_of


def written(tmp_path, content):
    path = tmp_path / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    (
        "slide,mpp\na.svs,0.25\nb.svs,\n",
        "\ufeffslide,mpp\r\na.svs,0.25\r\nb.svs,\r\n",
        "Slide;mpp\r\na.svs;0,25\r\nb.svs;\r\n",
        '"slide","mpp"\n"a.svs","0.25"\n\n"b.svs",""\n',
        " slide ,mpp\ra.svs , 0.25\rb.svs,\r",
        "slide\tmpp\na.svs\t0.25\nb.svs\t\n",
        "slide,mpp\na.svs,0.25\nb.svs,\n".encode("utf-16"),
    ),
)
def test_a_list_is_read_in_all_usual_forms(tmp_path, content):
    entries = read_list(written(tmp_path, content))
    assert entries == [Entry(tmp_path / "a.svs", 0.25), Entry(tmp_path / "b.svs")]


def test_quotes_line_breaks_and_paths(tmp_path):
    text = 'slide,tissue,truth\n"with, comma\nand line.svs",mask.png,\n/abs/b.svs,,truth.png\n'
    assert read_list(written(tmp_path, text)) == [
        Entry(tmp_path / "with, comma\nand line.svs", None, str(tmp_path / "mask.png")),
        Entry(Path("/abs/b.svs"), None, None, str(tmp_path / "truth.png")),
    ]


def test_slides_of_the_same_file_name_may_be_given_names(tmp_path):
    entries = read_list(written(tmp_path, "slide,name\ncase1/HE.svs,case1\ncase2/HE.svs,case2.HE\ncase3/HE.svs,\n"))
    assert [entry.folder for entry in entries] == ["case1", "case2.HE", "HE"]
    assert entries[2] == Entry(tmp_path / "case3" / "HE.svs")


@pytest.mark.parametrize("name", ("a/b", "..", ".hidden", "a:b", "x" * 121, "two\nlines", "\\"))
def test_names_that_cannot_be_folders_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="expected the name of a folder"):
        check_name(name)
    with pytest.raises(DataError, match="line 2: expected the name of a folder"):
        read_list(written(tmp_path, f'slide,name\na.svs,"{name}"\n'))


@pytest.mark.parametrize(
    "content, said",
    (
        ("", "found none"),
        ("slide,mpp\n", "found none"),
        ("name,mpp\na,1\n", "line 1: expected a header with the column slide"),
        ("slide,color\na,1\n", "line 1: expected the columns .*'color'"),
        ("slide,mmp\na,1\n", "line 1: .*'mmp'; did you mean mpp"),
        ("# slides of June\nslide,mpp\na,1\n", "line 1: expected a header"),
        ("slide\n#a.svs\nb.svs\n", "line 2: expected a slide, found a line that starts with #"),
        ("slide,mpp\n# none yet\nb.svs,\n", "line 2: expected a slide, found a line that starts with #"),
        ("slide,name\nx.svs,caf\u00e9\nb.svs,cafe\u0301\n", "line 3: .*same folder of results.*line 2"),
        ("slide,slide\na,b\n", "line 1: .*'slide' twice"),
        ("slide,mpp\na.svs,0.25\nb.svs\n", "line 3: expected 2 fields"),
        ("slide,mpp\na.svs,fast\n", "line 2: expected um per pixel, found 'fast'"),
        ("slide,mpp\na.svs,nan\n", "line 2, mpp: expected um per pixel such as 0.25, found nan"),
        ("slide,mpp\na.svs,0.25\nb.svs,40\n", "line 3, mpp: expected um per pixel such as 0.25, found 40"),
        ("slide,mpp\n,0.25\n", "line 2: expected a slide"),
        (
            'slide\n"a\nb.svs"\na/x.svs\nb/X.tif\n',
            "line 5: .*same folder of results.*line 4; give each slide a different name",
        ),
        ("slide,name\na/x.svs,one\nb.svs,ONE\n", "line 3: .*same folder of results.*line 2"),
        ('slide\n"a.svs\n', "line 2: expected CSV"),
        (b"slide\n\xff\xfea.svs\n", "expected UTF-8 text"),
    ),
)
def test_errors_in_a_list_name_the_line(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        read_list(written(tmp_path, content))


def test_the_log_says_how_many_slides_there_are_and_which_are_the_same_file(tmp_path, caplog):
    (tmp_path / "#1.svs").touch()
    (tmp_path / "link.svs").symlink_to("#1.svs")
    with caplog.at_level("INFO", "bcss_jax"):
        entries = read_list(written(tmp_path, "slide,name\n\n#1.svs,\n,\n./#1.svs,second\nlink.svs,\n"))
    assert [entry.folder for entry in entries] == ["#1", "second", "link"]
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].endswith("list.csv: 3 slides (2 blank lines)")
    assert [message.split(", ", 1)[1] for message in messages[1:]] == [
        "line 5: '#1.svs' is also in line 3",
        "line 6: 'link.svs' is also in line 3",
    ]


def test_names_may_start_with_a_number_sign(tmp_path):
    assert read_list(written(tmp_path, "name,slide\n#1,a.svs\n")) == [Entry(tmp_path / "a.svs", name="#1")]


def test_a_folder_is_no_list(tmp_path):
    with pytest.raises(DataError, match="expected a CSV list of slides, found a folder"):
        read_list(tmp_path)


def test_a_missing_list_is_refused(tmp_path):
    with pytest.raises(DataError, match="check the path"):
        read_list(tmp_path / "none.csv")


def test_shards_cover_the_list_once():
    entries = [Entry(Path(str(number))) for number in range(11)]
    assert shard_of(entries, None) == entries
    for count in (1, 3, 11, 20):
        found = [entry for number in range(count) for entry in shard_of(entries, f"{number}/{count}")]
        assert sorted(found) == sorted(entries)


@pytest.mark.parametrize("shard", ("4/4", "-1/4", "1", "1/", "a/b", "1/0", "1.0/2"))
def test_an_invalid_shard_is_refused(shard):
    with pytest.raises(ConfigError, match=f"--shard={shard}"):
        shard_of([], shard)


@pytest.mark.parametrize(
    "slide, name",
    (
        ("a/TCGA-A2.b.svs", "TCGA-A2.b"),
        ("plain", "plain"),
        ("line\nbreak.svs", "line_break"),
        ("...svs", "slide"),
        (".svs", "svs"),
        ("x" * 300 + ".svs", "x" * 120),
        ("a:b*c.svs", "a_b_c"),
        ("no\udcff text.svs", "no_ text"),
    ),
)
def test_names_of_folders(slide, name):
    assert portable_stem(Path(slide)) in (name, name.replace("_", "?"))
    assert "/" not in portable_stem(Path(slide)) and "\n" not in portable_stem(Path(slide))
