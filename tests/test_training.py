"""The workshop on toy data: features, augmentation, simulated letters, and both stages on a tiny model."""

import json
import wave
from copy import deepcopy

import numpy as np
import pytest
from tokenizers import Tokenizer as Tokenizers
from tokenizers import decoders, models, pre_tokenizers

torch = pytest.importorskip("torch")

from tiny import LLAMA  # noqa: E402
from toys import tiny_processor  # noqa: E402

from moss_audio.audio import load_audio, log_mel  # noqa: E402
from moss_audio.config import LETTERS, ModelConfig  # noqa: E402
from moss_audio.data.manifest import MelStore, held_out  # noqa: E402
from moss_audio.data.punctuate import restore, sentence, windows  # noqa: E402
from moss_audio.data.speak import four_grams, spoken_texts  # noqa: E402
from moss_audio.inference.search import answer_start  # noqa: E402
from moss_audio.messages import Message  # noqa: E402
from moss_audio.model.audio_lm import AudioLM  # noqa: E402
from moss_audio.model.encoder import EncoderOutput  # noqa: E402
from moss_audio.training import align, letters  # noqa: E402
from moss_audio.training.augment import augment, mask, mix, warp  # noqa: E402
from moss_audio.training.examples import Example, Sentences, Texts  # noqa: E402
from moss_audio.training.loop import Plan, fit, load_weights  # noqa: E402
from moss_audio.training.precision import autocast  # noqa: E402
from moss_audio.training.simulate import LetterBank, garble  # noqa: E402
from moss_audio.training.spelling import PieceSpeller, greedy_text, letter_ids, spell  # noqa: E402

TEXTS = ("a cab", "bad bee", "see a dad", "abc", "do be", "cab")


@pytest.fixture
def data(tmp_path):
    """Six clips in which every letter is a tone of its own, with manifests and texts beside them."""
    (tmp_path / "clips").mkdir()
    time = np.arange(1600) / 16000
    for i, text in enumerate(TEXTS):
        tones = [np.sin(2 * np.pi * (200 + 120 * LETTERS.index(c)) * time) for c in text]
        with wave.open(str(tmp_path / f"clips/{i}.wav"), "wb") as wav:
            wav.setparams((1, 2, 16000, 0, "NONE", ""))
            wav.writeframes((np.concatenate(tones) * 9000).astype("<i2").tobytes())
    rows = [{"audio": f"clips/{i}.wav", "text": text, "seconds": 0.1 * len(text)} for i, text in enumerate(TEXTS)]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "lines.txt").write_text("a bad cab and a bee\nfeed a dad\nTHE BEE SEES A CAB\n")
    return tmp_path


@pytest.fixture
def model():
    raw = deepcopy(LLAMA)
    raw["audio_config"]["letters"] = LETTERS
    raw["audio_config"]["n_window"] = 1000
    raw["language_config"]["vocab_size"] = 266
    raw["adapter_hidden_size"] = 128
    torch.manual_seed(0)
    return AudioLM(ModelConfig.parse(raw))


@pytest.fixture
def processor(byte_tokenizer):
    return tiny_processor(byte_tokenizer)


RECIPE = {
    "sources": [{"manifest": "clips.jsonl", "task": "transcribe", "weight": 1.0}],
    "noise": ["clips.jsonl"], "noise_rate": 0.3, "dev": "clips.jsonl", "dev_clips": 2, "dev_every": 5, "seed": 0,
    "steps": 10, "warmup": 2, "batch_size": 400,
}  # fmt: skip


def log_of(state):
    return [json.loads(line) for line in state.with_suffix(".jsonl").read_text().splitlines()]


def test_features_are_kept_and_an_interrupted_run_goes_on(data):
    whole = MelStore(data / "clips.jsonl", data / "whole", 80)
    np.testing.assert_allclose(whole[2], log_mel(load_audio(data / "clips/2.wav"), 80), atol=1e-3)
    lines = (data / "clips.jsonl").read_text().splitlines(keepends=True)
    (data / "clips.jsonl").write_text("".join(lines[:3]))
    MelStore(data / "clips.jsonl", data / "parts", 80)
    with (data / "parts/clips.mel80").open("ab") as half_written:
        half_written.write(b"torn")
    (data / "clips.jsonl").write_text("".join(lines))
    parts = MelStore(data / "clips.jsonl", data / "parts", 80)
    assert len(parts) == 6
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_fifth_is_held_out_by_name_alone():
    rows = [{"audio": f"folder{i % 2}/{i}.ogg"} for i in range(2000)]
    assert 0.17 < np.mean([held_out(row) for row in rows]) < 0.23
    assert held_out({"audio": "a/7.ogg"}) == held_out({"audio": "b/7.ogg"})


def test_augmentation():
    rng, mel = np.random.default_rng(0), torch.rand(80, 200)
    assert warp(mel, 2.0, 1.0).shape == (80, 100)
    torch.testing.assert_close(warp(mel, 1.0, 1.0), mel, atol=2e-3, rtol=0)
    assert (mask(mel, rng) != mel).any() and mel.max() <= 1
    loud, faint = mix(mel, torch.rand(80, 30), -20), mix(mel, torch.rand(80, 30), 80)
    assert (loud - mel).abs().mean() > 10 * (faint - mel.clamp(min=float(mel.max()) - 2)).abs().mean()
    assert augment(mel, rng, torch.rand(80, 30)).isfinite().all()
    lengths = [augment(mel, rng, change=change).shape[1] for change in (1.0, 3.0) for _ in range(30)]
    assert min(lengths[:30]) > 170 and max(lengths[:30]) < 235 and max(lengths[30:]) > 250


def test_spelling():
    assert spell("Don't  stop — ÉCLAIR!") == "don't stop clair"
    assert spell("route 66") is None and spell("...") is None
    one_hot = torch.eye(len(LETTERS) + 1)[[0, 3, 3, 0, 3, 2, 1, 1, 0, 5]]
    assert greedy_text(one_hot) == "bba d"
    assert [LETTERS[i - 1] for i in letter_ids("a b")] == ["a", " ", "b"]


def test_simulated_letters_spell_the_text():
    bank, rng = LetterBank(len(LETTERS) + 1), np.random.default_rng(0)
    for text in ("a bad cab", "cab dab"):
        frames = [0, 0]
        for i in letter_ids(text):
            frames += [i, i, 0]
        bank.add(np.eye(len(LETTERS) + 1)[frames] * 0.9 + 0.1 / (len(LETTERS) + 1), letter_ids(text))
    ids = letter_ids("bad dab cab")
    assert greedy_text(torch.from_numpy(bank.spell(ids, rng))) == "bad dab cab"
    assert bank.misspell(ids, rng, error_rate=0.0) == ids
    assert sum(bank.misspell(ids, rng, error_rate=0.5) != ids for _ in range(20)) > 15


def piece_folder(folder):
    """A base with pieces: BPE that knows the words of the toy texts by their first two letters."""
    letters_of = [*"abcdefghijklmnopqrstuvwxyz'", "Ġ"]
    merges = [("Ġ", "c"), ("Ġ", "b"), ("Ġc", "a"), ("Ġb", "a")]
    names = [*letters_of, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizers(models.BPE({name: i for i, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "pieces.json"))
    (folder / "pieces.txt").write_text("".join(f"{name.replace('Ġ', ' ')}\n" for name in names if name != "Ġ"))
    return PieceSpeller(folder)


def test_pieces_spell_and_are_spelled(tmp_path):
    speller = piece_folder(tmp_path)
    ids = speller.ids("cab bad")
    assert [speller.pieces[i - 1] for i in ids] == [" ca", "b", " ba", "d"]
    frames = [0, ids[0], ids[0], 0, ids[1], ids[2], 0, ids[3], ids[3]]
    logits = torch.eye(1 + len(speller.pieces))[frames]
    assert speller.text(logits) == "cab bad" and speller.text(logits[:1]) == ""


def test_the_loss_of_pieces_is_ctc_over_all_of_them(model):
    torch.manual_seed(1)
    logits = torch.randn(2, 6, 8, requires_grad=True)
    out = EncoderOutput(torch.zeros(2, 12, 32), (), None, torch.tensor([12, 7]), logits)
    ids = [[3, 3, 5], [7]]
    loss = letters.piece_loss(out, ids)
    logprobs = logits.log_softmax(-1).transpose(0, 1)
    whole = torch.nn.functional.ctc_loss(
        logprobs, torch.tensor([3, 3, 5, 7]), torch.tensor([6, 4]), torch.tensor([3, 1]), reduction="sum"
    )
    torch.testing.assert_close(loss, whole / 4)
    loss.backward()
    assert logits.grad.abs().sum(1).min() > 0  # outputs that no target names are pushed down all the same


def test_pieces_are_learned_beside_letters(data, tmp_path):
    speller, raw = piece_folder(tmp_path), deepcopy(LLAMA)
    raw["audio_config"] |= {"letters": LETTERS, "n_window": 1000, "n_pieces": len(speller.pieces)}
    torch.manual_seed(0)
    encoder = AudioLM(ModelConfig.parse(raw)).audio_encoder
    before = deepcopy(encoder.state_dict())
    recipe = RECIPE | {"steps": 40, "dev_every": 40, "piece_weight": 0.5,
                       "lr": {"piece_head\\.pieces": 0, "piece_head|letter_head": 5e-3}}  # fmt: skip
    letters.train(encoder, recipe, data, data / "out/letters.safetensors", False, speller)
    log = log_of(data / "out/letters.safetensors")
    assert log[-1]["loss"] < log[0]["loss"] and "dev_wer_pieces" in log[-1]
    changed = {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "piece_head.mix.weight" in changed and "piece_head.pieces.weight" not in changed


def test_words_err_as_the_piece_head_errs():
    rng, text = np.random.default_rng(0), "the fury of the sea was over before night came"
    assert garble(text, rng, 0.0) == text
    wrong = [garble(text, rng, 0.6, ["nigh", "night", "over", "sea", "see", "the"]).split() for _ in range(50)]
    assert min(map(len, wrong)) < 10 and any("furyury" in words for words in wrong)
    assert any("see" in words for words in wrong) and all(text.split() != words for words in wrong)


def test_plain_texts_are_learned_whole_and_the_last_lines_stay_apart(model, processor, data, monkeypatch):
    monkeypatch.setattr(Texts, "APART", 1)
    texts = Texts({"plain": "lines.txt", "weight": 1}, data)
    assert texts.lines == []  # lines of up to twenty characters are left out
    (data / "lines.txt").write_text("a bad cab and a bee saw a dad\nthe last line is for measuring\n")
    example = Texts({"plain": "lines.txt", "weight": 1}, data).draw(np.random.default_rng(0), (), 0.0)
    assert example.plain and example.answer == "a bad cab and a bee saw a dad"
    loss = align.Reader(model, processor).loss([example], np.random.default_rng(0), 0.0)
    ids = torch.tensor([processor.tokenizer.encode(example.answer)])
    logits = model.decode(ids)[0, :-1]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, ids[0, 1:]), rtol=1e-4, atol=1e-4)


def test_answers_to_nothing_are_what_the_search_writes_along(model, processor, data):
    (data / "lines.txt").write_text("A BAD CAB AND A BEE SAW A DAD\n")
    source = {"texts": "lines.txt", "unasked": True, "weight": 1}
    example = Sentences(source, data, set(), LetterBank(len(LETTERS) + 1)).draw(np.random.default_rng(0), (), 0.0)
    assert example.answer == "A bad cab and a bee saw a dad." and example.mel is None and example.size > 50
    loss = align.Reader(model, processor).loss([example], np.random.default_rng(0), 0.0)
    prompt = processor.encode([Message.of("user", "What?")])
    opened = prompt.input_ids[answer_start(processor.tokenizer, prompt) :]
    answer = [*processor.tokenizer.encode(example.answer), processor.turn_end]
    logits = model.decode(torch.tensor([[*opened, *answer]]))[0, len(opened) - 1 : -1]
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(answer))
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)


def test_letters_stage_learns_and_resumes(model, data):
    encoder, out = model.audio_encoder, data / "out"
    before = deepcopy(encoder.state_dict())
    recipe = RECIPE | {"steps": 40, "dev_every": 20, "lr": {"letter_head|layers\\.[12]|layer_norm": 5e-3}}
    letters.train(encoder, recipe, data, out / "letters.safetensors", resume=False)
    log = log_of(out / "letters.safetensors")
    assert log[-1]["loss"] < 0.7 * log[0]["loss"] and log[-1]["step"] == 40 and "dev_wer" in log[-1]
    changed = {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and not any(name.startswith(("conv", "layers.0.")) for name in changed)
    again = AudioLM(model.config).audio_encoder
    load_weights(out / "letters.safetensors", again)
    again.load_state_dict({name: before[name] for name in before if name not in changed}, strict=False)
    letters.train(again, recipe | {"steps": 42}, data, out / "letters.safetensors", resume=True)
    assert log_of(out / "letters.safetensors")[-1]["step"] == 42


def test_align_stage_learns_and_leaves_the_encoder(model, processor, data):
    encoder = deepcopy(model.audio_encoder.state_dict())
    recipe = RECIPE | {
        "bank": {"manifests": ["clips.jsonl"], "clips": 10}, "error_rate": 0.1, "steps": 30, "dev_every": 30,
        "lr": {"audio_adapter|deepstack": 5e-3, "language_model\\.(layers|norm)": 5e-3},
        "sources": [*RECIPE["sources"], {"texts": "lines.txt", "weight": 0.5, "error_rate": 0.1}],
        "dev": "dev.jsonl",
    }  # fmt: skip
    (data / "dev.jsonl").write_text((data / "clips.jsonl").read_text().splitlines()[0] + "\n")
    align.initialise_adapter(model, processor)
    reader, probe = align.Reader(model, processor), [Example("What?", "A cab.", np.zeros((80, 100), np.float32))]
    first = reader.loss(probe, np.random.default_rng(0), 0.0)
    align.train(model, processor, recipe, data, data / "out/toy.safetensors", resume=False)
    last = reader.loss(probe, np.random.default_rng(0), 0.0)
    assert last < 0.7 * first
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in model.audio_encoder.state_dict().items())


def test_the_adapter_starts_as_a_speller(model, processor):
    align.initialise_adapter(model, processor)
    top = torch.zeros(1, 4, 32 + len(LETTERS) + 1)
    top[0, :, 32] = 1
    top[0, 2, 32:] = torch.eye(len(LETTERS) + 1)[letter_ids("c")[0]]
    with torch.no_grad():
        letters = top[..., 32:].clamp(min=1e-30).log()
        out = EncoderOutput(top[..., :32], (torch.zeros(1, 4, 32),) * 2, letters, torch.tensor([4]))
        embeds = model.adapt_output(out).embeds
    expected = model.language_model.embed_tokens.weight[processor.tokenizer.encode("c")[0]]
    assert torch.cosine_similarity(embeds[0], expected, dim=0) > 0.9


def test_a_diverging_run_stops(tmp_path):
    layer = torch.nn.Linear(2, 1)
    plan = Plan(steps=3, warmup=1, lr={"": 1.0}, dev_every=1)
    with pytest.raises(FloatingPointError, match="step 0"):
        fit(layer, plan, lambda rng: ((layer.weight * float("inf")).sum(), 1), dict, tmp_path / "run.safetensors")


def test_punctuation_comes_from_the_recogniser_and_words_from_the_transcript():
    words = "AND SO I'LL SAY DON'T GO JOHN".split()
    heard = "And so, I'll say: don't go, Jon!".split()
    assert sentence(restore(words, heard)) == "And so, I'll say: don't go, john."
    rows = [{"seconds": 12.0, "text": "a"}] * 3 + [{"seconds": 2.0}, {"seconds": 2.0, "text": "b"}]
    assert [len(group) for group in windows(rows)] == [2, 1, 1, 1]


def test_texts_to_speak_avoid_the_development_set(tmp_path):
    (tmp_path / "dev.jsonl").write_text(json.dumps({"text": "THE QUICK BROWN FOX JUMPS"}) + "\n")
    (tmp_path / "librispeech_lines.txt").write_text("A QUICK BROWN FOX JUMPS OVER MY LAZY DOG TODAY\n")
    (tmp_path / "wordnet_examples.txt").write_text("the quick brown fox jumps\nhe paid 12 dollars\na stock item\n")
    texts = spoken_texts(tmp_path, four_grams(tmp_path / "dev.jsonl"), (3, 6), seed=0)
    drawn = {next(texts) for _ in range(50)}
    assert "a stock item" in drawn and not any("quick brown fox jumps" in text or "12" in text for text in drawn)


def test_bfloat16_only_where_the_processor_multiplies_it(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda native=native: native)
        with autocast(torch.device("cpu")):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if native else torch.float32)
