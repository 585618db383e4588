from __future__ import annotations

import re

import pytest

from rerank.errors import ConfigError, UnknownNameError
from rerank.evaluation.measures import depth_needed, known_measures, parse_measure, parse_measures

COMPUTABLE = [
    "nDCG@10",
    "nDCG",
    "nDCG(dcg='exp-log2')@10",
    "nDCG(judged_only=True)@10",
    "nDCG(gains={1:0,2:1})@10",
    "R(rel=2)@100",
    "AP",
    "AP(rel=2)@100",
    "RR@10",
    "P@5",
    "Judged@10",
    "Success@1",
    "Rprec",
    "IPrec@0.1",
    "Bpref",
    "infAP",
    "Compat",
    "ERR@20",
    "SetF(beta=0.5)",
    "NumRet(rel=1)",
    "NumQ",
    "Accuracy@10",
]


@pytest.mark.parametrize("name", COMPUTABLE)
def test_a_name_reads_as_ir_measures_reads_it(name):
    import ir_measures

    assert parse_measure(name) == ir_measures.parse_measure(name)
    assert str(parse_measure(str(parse_measure(name)))) == str(parse_measure(name))


def test_aliases_and_repetitions_become_one_measure_with_its_canonical_name():
    assert list(parse_measures(["MAP", "NDCG@10", "AP", "nDCG(dcg='log2')@10"])) == ["AP", "nDCG@10"]


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("nDGC@10", UnknownNameError, "did you mean 'nDCG'"),
        ("xyzzy", UnknownNameError, "known: AP"),
        ("R(rl=2)@10", UnknownNameError, "did you mean 'rel'"),
        ("P", ConfigError, "write P@10"),
        ("P@0", ConfigError, "at least 1"),
        ("P@-3", ConfigError, "at least 1"),
        ("R(rel=0)@10", ConfigError, "rel is 0, at least 1"),
        ("P@True", ConfigError, "int was expected"),
        ("nDCG@2.5", ConfigError, "int was expected"),
        ("nDCG@'ten'", ConfigError, "int was expected"),
        ("IPrec@0.125", ConfigError, "two decimals"),
        ("IPrec@2.0", ConfigError, "two decimals"),
        ("nDCG(gains={1:-1})@10", ConfigError, "gains must map"),
        ("nDCG(gains={1:0.5})@10", ConfigError, "gains must map"),
        ("nDCG(gains=3)@10", ConfigError, "dict was expected"),
        ("RBP(rel=1)", ConfigError, "pip install"),
        ("alpha_nDCG@10", ConfigError, "subtopic"),
        ("ERR", ConfigError, "these parameters"),
        ("NumRel(rel=2)", ConfigError, "these parameters"),
        ("", ConfigError, "in the form"),
        ("nDCG@10 R@100", ConfigError, "in the form"),
        ("nDCG@__import__('os')", ConfigError, "in the form"),
        ("nDCG(10)", ConfigError, "in the form"),
        ("nDCG(**{})", ConfigError, "in the form"),
        ("os.system", ConfigError, "in the form"),
        ("(" * 5000, ConfigError, "in the form"),
    ],
)
def test_what_cannot_be_measured_says_what_to_write(name, error, says):
    with pytest.raises(error, match=re.escape(says)) as caught:
        parse_measure(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_measures_must_be_a_list_with_an_entry():
    with pytest.raises(ConfigError, match="must be a list"):
        parse_measures("nDCG@10 R@100")
    with pytest.raises(ConfigError, match="at least one"):
        parse_measures([])


def test_depth_is_the_largest_cutoff_only_if_every_measure_has_one_that_counts_all_documents():
    def depth(*names):
        return depth_needed(parse_measures(names).values())

    assert depth("nDCG@10", "R(rel=2)@100") == 100
    assert depth("nDCG@10", "AP") is None
    assert depth("nDCG@10", "nDCG(judged_only=True)@20") is None
    assert depth("P@5", "IPrec@0.1") is None


def test_known_measures_tell_what_each_needs():
    known = {info.name: info for info in known_measures()}
    assert known["P"].parameters == ("cutoff (required)", "rel=1", "judged_only=False")
    assert known["nDCG"].missing == ""
    assert "subtopic" in known["StRecall"].missing
    assert all(info.description for info in known.values())
    assert {"AP", "Bpref", "Compat", "ERR", "infAP", "Judged", "RBP"} <= known.keys()
