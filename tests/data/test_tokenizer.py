"""Token ids: BOS, null contexts, the boundary between two texts, templates, what is refused."""

import json
import os
import shutil
import unicodedata

import pytest
from data.tokenizers import BOUNDARIES, END, NAMES, TEXTS, edited, folder_of, loaded, model_folder
from helpers import DEMO
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from cqa.data.tokenizer import Tokenizer
from cqa.data.tokenizer_files import panics_silenced
from cqa.errors import DataError, ModelError


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(name) -> Tokenizer:
    return loaded(name)


@pytest.fixture
def demo() -> Tokenizer:
    return loaded("cqa-demo")


def test_bos_is_in_front_if_and_only_if_the_tokenizer_adds_one(name, tokenizer):
    theirs = AutoTokenizer.from_pretrained(folder_of(name))("Once upon a time")["input_ids"]
    assert list(tokenizer.encode_context("Once upon a time")) == theirs
    assert len(tokenizer.bos_ids) == (name == "stories260k")


@pytest.mark.parametrize(
    ("name", "null", "end"),
    [
        ("cqa-demo", END, END),
        ("stories260k", "<s>", "</s>"),
        ("qwen2.5-tokenizer", END, END),
    ],
    ids=NAMES,
)
def test_null_contexts_and_the_end_token_follow_the_convention(name, null, end):
    tokenizer = loaded(name)
    assert tokenizer.decode(tokenizer.null_ids) == null
    assert tokenizer.decode(tokenizer.null2_ids) == null + "\n"
    assert tokenizer.decode([tokenizer.end_id]) == end
    assert len(tokenizer.null_ids) == 1
    assert len(tokenizer.null2_ids) == 2


def test_named_null_token_replaces_the_default_in_both_null_contexts():
    tokenizer = Tokenizer(DEMO / "model", null_token="<|im_start|>")
    assert tokenizer.decode(tokenizer.null_ids) == "<|im_start|>"
    assert tokenizer.decode(tokenizer.null2_ids) == "<|im_start|>\n"
    assert tokenizer.decode([tokenizer.end_id]) == END


@pytest.mark.parametrize("token", ["<|no such token|>", "two words", ""], ids=repr)
def test_null_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ModelError, match="expected --null-token to be one token") as caught:
        Tokenizer(DEMO / "model", null_token=token)
    assert caught.value.exit_code == 4
    assert f"got: {token!r}" in caught.value.message


@pytest.mark.parametrize("option", [" She", " She ran home.", " 她走了。"], ids=repr)
def test_no_dummy_space_is_added_inside_the_text(tokenizer, option):
    context = "It rained."
    assert tokenizer.encode_context(context + option) == (
        tokenizer.encode_context(context) + tokenizer.encode_following(option)
    )


def test_dummy_space_of_llama_2_stays_at_the_start_of_a_sequence():
    tokenizer = loaded("stories260k")
    words = tokenizer.hf.convert_ids_to_tokens
    assert words(list(tokenizer.encode_context("She"))) == ["<s>", "▁She"]
    assert words(list(tokenizer.encode_following(" She"))) == ["▁She"]
    assert "".join(words(list(tokenizer.encode_following("She")))) == "She"


@given(st.sampled_from(TEXTS), st.data())
@settings(deadline=None)
def test_ids_decode_to_the_text_wherever_it_is_cut(tokenizer, text, data):
    start = "Well. "  # so that even a joint encoding leaves the context a token
    text = start + text
    cut = data.draw(st.integers(len(start), len(text) - 1))
    context, option = text[:cut], text[cut:]
    split, joint = (tokenizer.encode_pair(context, option, boundary) for boundary in BOUNDARIES)
    n_bos = len(tokenizer.bos_ids)
    for encoded in (split, joint):
        ids = encoded.context_ids + encoded.option_ids
        assert ids[:n_bos] == tokenizer.bos_ids
        assert tokenizer.decode(ids[n_bos:]) == text
    assert split.context_ids == tokenizer.encode_context(context)
    assert joint.context_ids + joint.option_ids == tokenizer.encode_context(text)


@given(st.sampled_from(TEXTS), st.data())
@settings(deadline=None)
def test_boundary_flag_tells_whether_joint_encoding_differs(tokenizer, text, data):
    text = "Well. " + text
    cut = data.draw(st.integers(6, len(text) - 1))
    split, joint = (tokenizer.encode_pair(text[:cut], text[cut:], b) for b in BOUNDARIES)
    same = (split.context_ids, split.option_ids) == (joint.context_ids, joint.option_ids)
    assert split.boundary_mismatch is joint.boundary_mismatch is not same


def test_both_encodings_agree_where_a_new_word_begins(tokenizer):
    cuts = [(text, cut) for text in TEXTS for cut in range(1, len(text)) if text[cut] == " "]
    for text, cut in cuts:
        split = tokenizer.encode_pair(text[:cut], text[cut:], "split")
        assert split.context_ids + split.option_ids == tokenizer.encode_context(text)
        assert not split.boundary_mismatch


@given(st.sampled_from(TEXTS), st.data())
@settings(deadline=None)
def test_joint_context_never_holds_a_character_of_the_option(tokenizer, text, data):
    text = "Well. " + text
    cut = data.draw(st.integers(6, len(text) - 1))
    joint = tokenizer.encode_pair(text[:cut], text[cut:], "joint")
    decoded = tokenizer.decode(joint.context_ids[len(tokenizer.bos_ids) :])
    whole_characters = decoded.rstrip("\N{REPLACEMENT CHARACTER}")
    assert text[:cut].startswith(whole_characters)


@pytest.mark.parametrize(
    ("context", "option", "straddling"),
    [("It rained on the", "m all.", " them"), ("He saw no", "thing.", " nothing")],
    ids=["them", "nothing"],
)
def test_joint_charges_a_straddling_token_to_the_option(demo, context, option, straddling):
    (token,) = demo.encode_following(straddling)
    split, joint = (demo.encode_pair(context, option, boundary) for boundary in BOUNDARIES)
    assert joint.option_ids[0] == token
    assert joint.context_ids == demo.encode_context(context.rpartition(" ")[0])
    assert token not in split.context_ids + split.option_ids
    assert split.boundary_mismatch
    assert joint.boundary_mismatch


@pytest.mark.parametrize("boundary", BOUNDARIES)
@given(st.sampled_from(TEXTS), st.data())
@settings(deadline=None, max_examples=20)
def test_token_ends_say_what_each_token_of_the_option_spells(tokenizer, boundary, text, data):
    text = "Well. " + text + " 在é👩"
    cut = data.draw(st.integers(6, len(text) - 1))
    encoded = tokenizer.encode_pair(text[:cut], text[cut:], boundary)
    ends = encoded.option_char_ends
    assert ends == tuple(sorted(ends))
    assert (len(ends), ends[-1]) == (len(encoded.option_ids), len(text) - cut)
    whole = encoded.context_ids + encoded.option_ids
    n_before = len(encoded.context_ids)
    for k, end in enumerate(ends):
        spelt = tokenizer.decode(whole[len(tokenizer.bos_ids) : n_before + k + 1])
        complete = spelt.rstrip("\N{REPLACEMENT CHARACTER}")
        if complete == spelt:
            assert text[: cut + end] == spelt
        else:  # the token ends inside a character, which is then charged to it
            assert text[: cut + end - 1].startswith(complete)


def test_options_have_the_same_ids_under_every_context(demo):
    option = "thing at all."
    ids = {demo.encode_pair(c, option, "split").option_ids for c in ("He saw no", "Some", "\n")}
    assert ids == {demo.encode_following(option)}


def test_joint_encoding_that_leaves_the_context_no_token_is_refused(demo):
    with pytest.raises(DataError, match=r"^a\.jsonl:3: expected at least one token .* got 0 and"):
        demo.encode_pair("The", "re was rain.", "joint", "a.jsonl:3")


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_accent_that_composes_with_the_end_of_the_context_is_refused(boundary):
    tokenizer = loaded("qwen2.5-tokenizer")
    with pytest.raises(DataError, match=r"^a\.jsonl:3: expected .* decode to the text") as caught:
        tokenizer.encode_pair("cafe", "\N{COMBINING ACUTE ACCENT} noir", boundary, "a.jsonl:3")
    assert caught.value.exit_code == 3
    assert "combining accent" in str(caught.value.hint)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_decomposed_text_is_composed_where_the_tokenizer_does_so(tokenizer, boundary):
    context, option = "He sat in the cafe\N{COMBINING ACUTE ACCENT}", " and drank cafe\u0301."
    encoded = tokenizer.encode_pair(context, option, boundary)
    ids = encoded.context_ids + encoded.option_ids
    decoded = tokenizer.decode(ids[len(tokenizer.bos_ids) :])
    assert unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", context + option)
    assert not encoded.boundary_mismatch


def test_rows_of_blocks_are_scored_by_a_tokenizer_that_has_them():
    tokenizer = loaded("qwen2.5-tokenizer")
    option = " ▁▂▃ and rising."
    encoded = tokenizer.encode_pair("The chart:", option, "split", "a.jsonl:3")
    assert tokenizer.decode(encoded.option_ids) == option


def test_block_that_a_tokenizer_writes_for_a_space_is_refused():
    with pytest.raises(DataError, match=r"^a\.jsonl:3: expected .* another text\nhint: .*▁"):
        loaded("stories260k").encode_pair("The chart:", " ▁▂▃.", "split", "a.jsonl:3")


@pytest.mark.parametrize("text", ["to the <s>old</s> park", "<unk>"])
def test_control_tokens_of_a_llama_tokenizer_are_refused_in_a_text(text):
    tokenizer = loaded("stories260k")
    with pytest.raises(
        DataError, match=r"^a\.jsonl:3: expected .* control tokens, got `<(s|unk)>`"
    ):
        tokenizer.refuse_special(text, "a.jsonl:3")
    tokenizer.refuse_special("a < s > and <b>", "a.jsonl:3")


ODD = "He paid 12,345 francs, didn't he?\n\n  Then: cafe\u0301 ... 'tis [sic]\u2003done"


def test_rules_of_the_file_are_those_that_tokenize(tmp_path):
    bytes_alone = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    normalizer = {"type": "Lowercase"}
    folder = edited(tmp_path / "m", pre_tokenizer=bytes_alone, normalizer=normalizer)
    file = Backend.from_file(str(folder / "tokenizer.json"))
    assert list(Tokenizer(folder).encode_context(ODD)) == file.encode(ODD).ids
    assert file.encode(ODD).ids != list(loaded("cqa-demo").encode_context(ODD))


def test_published_qwen_files_give_the_ids_of_autotokenizer_with_and_without_tokenizer_json(
    tmp_path,
):
    source = folder_of("qwen2.5-tokenizer")
    theirs = AutoTokenizer.from_pretrained(source)
    whole = tmp_path / "whole"
    shutil.copytree(source, whole)
    theirs.backend_tokenizer.save(str(whole / "tokenizer.json"))
    ids = theirs(ODD).input_ids
    assert list(loaded("qwen2.5-tokenizer").encode_context(ODD)) == ids
    assert list(Tokenizer(whole).encode_context(ODD)) == ids


def test_ids_do_not_depend_on_whether_mistral_common_is_installed(tmp_path, monkeypatch):
    folder = edited(tmp_path / "m")
    (folder / "tekken.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    without = Tokenizer(folder).encode_context(ODD)
    stub = tmp_path / "site" / "mistral_common"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("__version__ = '99.0'\n")
    monkeypatch.syspath_prepend(str(stub.parent))
    name = "transformers.integrations.mistral.tokenizer.is_mistral_common_available"
    monkeypatch.setattr(name, lambda *_: True)
    assert Tokenizer(folder).encode_context(ODD) == without


BROKEN = {
    "no-files": ((), {}),
    "no-tokenizer": (("config.json",), {}),
    "slow-only": ((), {"tokenizer_config": {"tokenizer_class": "ByT5Tokenizer"}}),
    "not-a-tokenizer": (("config.json", "tokenizer_config.json"), {"tokenizer": {}}),
    "remote-code": (
        ("config.json", "tokenizer.json"),
        {"tokenizer_config": {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}},
    ),
}


@pytest.mark.parametrize(("files", "written"), BROKEN.values(), ids=BROKEN)
def test_folder_without_a_usable_tokenizer_is_refused(tmp_path, files, written):
    folder = model_folder(tmp_path / "model", *files, **written)
    with pytest.raises(ModelError, match=r"expected a .*tokenizer") as caught:
        Tokenizer(folder)
    assert str(caught.value).startswith(f"{folder}")
    assert caught.value.exit_code == 4


def test_torn_tokenizer_config_is_refused(tmp_path):
    folder = model_folder(tmp_path / "model", "config.json", "tokenizer.json")
    (folder / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="expected "):
        Tokenizer(folder)


def test_id_that_the_model_lacks_is_refused_with_its_token():
    tokenizer = Tokenizer(DEMO / "model")
    context, option = "It rained.", " She ran home."
    highest = max(tokenizer.encode_context(context) + tokenizer.encode_following(option))
    tokenizer.limit_ids(max(highest, *tokenizer.null2_ids) + 1)
    tokenizer.encode_pair(context, option, "split")
    with pytest.raises(ModelError, match=r"vocab_size \d+, got \d+ for '.*'\nhint: .*together"):
        tokenizer.limit_ids(min(tokenizer.null2_ids))
    with pytest.raises(ModelError, match=r"^a\.jsonl:3: expected token ids below .* vocab_size"):
        tokenizer.encode_pair(context, option, "split", "a.jsonl:3")


def test_digest_tells_tokenizers_apart_and_is_repeatable(demo):
    assert demo.digest == Tokenizer(DEMO / "model").digest
    assert demo.digest != loaded("stories260k").digest


@pytest.mark.parametrize("text", [" She ran.", "She ran.", "\n", " 在雨里", "\u2003x"])
def test_ids_that_follow_others_are_decoded_with_the_space_they_begin_with(tokenizer, text):
    assert tokenizer.decode_following(tokenizer.encode_following(text)) == text


TEMPLATE_OF_NOTHING = {
    "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "q", "type_id": 0}}],
    "pair": [], "special_tokens": {},
}  # fmt: skip
PANICS = {
    "post": {"post_processor": TEMPLATE_OF_NOTHING},
    "length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
}


@pytest.mark.parametrize("change", PANICS.values(), ids=PANICS)
def test_tokenizer_at_which_rust_panics_is_refused_with_one_message(tmp_path, capfd, change):
    state = json.loads((DEMO / "model" / "tokenizer.json").read_text(encoding="utf-8"))
    folder = model_folder(tmp_path / "model", "config.json", tokenizer=state | change)
    with pytest.raises(ModelError, match=f"^{folder}: expected a tokenizer, got: "):
        Tokenizer(folder)
    assert capfd.readouterr().err == ""


def test_what_others_write_to_stderr_meanwhile_is_kept(capfd):
    with panics_silenced():
        os.write(2, b"a warning")
    assert capfd.readouterr().err == "a warning"


def test_tokenizer_without_a_token_for_a_text_is_refused(tmp_path):
    state = json.loads((DEMO / "model" / "tokenizer.json").read_text(encoding="utf-8"))
    model = {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]], "byte_fallback": False}
    changed = state | {"model": model, "added_tokens": []}
    folder = model_folder(tmp_path / "model", "config.json", tokenizer=changed)
    with pytest.raises(ModelError, match="expected a tokenizer"):
        Tokenizer(folder)


def test_plain_template_leaves_a_context_alone(tokenizer):
    assert tokenizer.render_context("Why?\n", "Yes.") == "Why?\n"
