"""Small folders with tokenizers in every form, what transformers makes of them, and the names of all fields that it knows:
`tokenizer_folders.json`, `tokenizer_fields.json`. Needs `sentencepiece` and `protobuf` beside requirements.txt, for the files of
SentencePiece.

A case is a set of files (texts as they are, SentencePiece's in base64, `tokenizer.json` by the name of a shared one), with the changes
that make it a case of its own, and the ids, decoded texts and types that AutoTokenizer gives."""

import base64
import io
import json
import re
import shutil
import tempfile
from inspect import getsource
from pathlib import Path

import sentencepiece
import tokenizers
from common import MODELS, generator
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer
from transformers.models.bert.tokenization_bert import BertTokenizer
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer
from transformers.models.llama.tokenization_llama import LlamaTokenizer
from transformers.models.roberta.tokenization_roberta import RobertaTokenizer
from transformers.models.t5.tokenization_t5 import T5Tokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

CORPUS = (
    "the good movie was bad and the plot was awful but they act so it is a fine film . she said : he's not here , isn't he ? "
    "The GOOD Movie! Café naïve résumé über straße 中文 字符 日本語 русский текст emoji 🙂 tab\tnew line done 12 345 6789 "
    "unaffable running walked talking words piece pieces tokens token under_score a-b (c) [d] <e> {f} \"quoted\" 'single' "
).split(" ")

TEXTS = [
    "the good movie",
    "The GOOD Movie",
    " leading and  double   spaces ",
    "Café naïve résumé — über straße",
    "中文字符 and 日本語 mixed",
    "he's not here, isn't he?",
    "tab\there and\nnew\r\nline",
    "unknown ☃ snowman 🙂 emoji",
    "<s> in text </s> and <mask> or <pad>",
    "[CLS] in text [SEP] and [MASK]",
    "say <new> and <NEW> word<new>word <new>.",
    "<|im_start|>user hi<|im_end|>",
    "<extra_id_0> fills <extra_id_1>",
    "a\u00a0b\u200bc\u0000d ﬁ ﷺ",
    "x" * 130 + " end",
    "under_score a-b (c) [d] {f} \"q\" 12 345 6789",
    "ǅ İstanbul ΑΣ",
    "don't  do 're 've 'm . ! ?",
    "русский текст",
    "e\u0301a\u0300",
]
PAIRS = [("the good movie was bad", "but they act so it is a fine film"), ("a", "the plot was awful and the movie was good")]


def lines(seed, count=400):
    gen = generator(seed)
    import torch

    picks = torch.randint(0, len(CORPUS), (count, 9), generator=gen).tolist()
    return [" ".join(CORPUS[i] for i in row) for row in picks]


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(lines("wordpiece"), trainers.WordPieceTrainer(vocab_size=220, special_tokens=special, show_progress=False))
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [token for token, _ in vocab]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines("bytes"), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [" ".join(merge) for merge in model["merges"]]


# What becomes what, as hexadecimal code points: a small table in place of NFKC's.
RULES = "FB01\t66 69\nFDFA\t635 644 649\nA0\t20\n200B\t\n65 301\tE9\n41\t61\n"


def pieces(kind, rules=None, **options):
    """A SentencePiece model. Training depends on nothing but the lines."""
    out = io.BytesIO()
    if rules:
        with tempfile.NamedTemporaryFile("w", suffix=".tsv", delete=False) as file:
            file.write(rules)
        options["normalization_rule_tsv"] = file.name
    else:
        options["normalization_rule_name"] = "identity"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines(f"pieces {kind}")),
        model_writer=out,
        model_type=kind,
        num_threads=1,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return out.getvalue()


def tokenizer_json(tokenizer):
    return json.loads(tokenizer.to_str())


def bert_json(vocab):
    """As BERT's tokenizer.json of old is: lower case in the file."""
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer_json(tokenizer)


def roberta_json(vocab, merges, prefix=False):
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(merge.split()) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, prefix)
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tokenizer_json(tokenizer)


def llama_json(vocab, merges):
    """As LLaMA 2's: a normalizer, no pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer_json(tokenizer)


def t5_json(vocab):
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer_json(tokenizer)


def token(content, **properties):
    base = {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return base | properties


def all_cases():
    wp = wordpiece()
    vocab, merges = byte_level()
    options = dict(vocab_size=180, character_coverage=0.99)
    unigram = pieces("unigram", rules=RULES, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, **options)
    bpe = pieces("bpe", byte_fallback=True, **(options | {"vocab_size": 440}))
    plain_bpe = pieces("bpe", **options, user_defined_symbols=["<new>"])
    model_pb2 = __import__("sentencepiece.sentencepiece_model_pb2", fromlist=["ModelProto"])
    proto = model_pb2.ModelProto.FromString(bpe)
    from transformers.tokenization_utils_base import generate_merges

    bpe_vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    t5_vocab = [(piece.piece, piece.score) for piece in model_pb2.ModelProto.FromString(unigram).pieces]
    shared = {
        "bert.json": bert_json(wp),
        "roberta.json": roberta_json(vocab, merges),
        "roberta-prefix.json": roberta_json(vocab, merges, True),
        "llama.json": llama_json(bpe_vocab, generate_merges(bpe_vocab)),
        "t5.json": t5_json(t5_vocab),
    }
    wp_text = "\n".join(wp) + "\n"
    merges_text = "#version: 0.2\n" + "\n".join(merges) + "\n"
    files = {
        "vocab.txt": wp_text,
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": merges_text,
        "spiece.model": unigram,
        "bpe.model": bpe,
        "plain-bpe.model": plain_bpe,
        "unigram.model": pieces("unigram", rules=RULES, **options),
    }
    cases = []

    def case(name, family, config=None, **more):
        cases.append({"name": name, "model_type": family, "tokenizer_config": config} | more)

    bert = {"tokenizer_class": "BertTokenizer"}
    # BERT from vocab.txt and from tokenizer.json.
    for source in [{"vocab.txt": "vocab.txt"}, {"tokenizer.json": "bert.json"}]:
        kind = next(iter(source))
        case(f"bert {kind}", "bert", None, files=source)
        for key, value in [("do_lower_case", False), ("do_lower_case", True), ("strip_accents", True), ("strip_accents", False), ("tokenize_chinese_chars", False)]:
            base = bert | ({"do_lower_case": False} if key == "strip_accents" and value else {})
            case(f"bert {kind} {key} {value}", "bert", base | {key: value}, files=source)
        case(f"bert {kind} fast", "bert", {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False, "model_max_length": 512}, files=source)
        case(f"bert {kind} added tokens", "bert", bert, files=source, added_tokens={"<new>": len(wp), "<mask>": len(wp) + 1})
        case(f"bert {kind} decoder", "bert", bert | {"added_tokens_decoder": {
            str(len(wp)): token("<new>", special=False, normalized=True), str(len(wp) + 1): token("<|im_start|>", lstrip=True, rstrip=True)}}, files=source)
        case(f"bert {kind} map", "bert", bert, files=source, special_tokens_map={
            "unk_token": "[UNK]", "additional_special_tokens": ["<|im_end|>", "<new>"], "mask_token": {"content": "[MASK]", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}})
        case(f"bert {kind} other roles", "bert", bert | {"cls_token": "the", "sep_token": "[MASK]", "unk_token": "[PAD]"}, files=source)
        case(f"bert {kind} left", "bert", bert | {"truncation_side": "left", "padding_side": "left"}, files=source)
        case(f"bert {kind} names", "bert", bert | {"model_input_names": ["input_ids", "attention_mask"]}, files=source)
        case(f"bert {kind} clean", "bert", bert | {"clean_up_tokenization_spaces": True}, files=source)
        case(f"bert {kind} split", "bert", bert | {"split_special_tokens": True}, files=source)
    case("plain bert.json", "bert", {"tokenizer_class": "PreTrainedTokenizerFast"}, files={"tokenizer.json": "bert.json"})
    case("plain bert.json types", "bert", {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}, files={"tokenizer.json": "bert.json"})
    case("plain extra", "bert", {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<new>"], "mask_token": "<mask>"}, files={"tokenizer.json": "bert.json"})
    case("plain extra named", "bert", {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": {"turn_token": "<|im_start|>"}, "image_token": "<new>"}, files={"tokenizer.json": "bert.json"})
    # RoBERTa.
    for source in [{"vocab.json": "vocab.json", "merges.txt": "merges.txt"}, {"tokenizer.json": "roberta.json"}]:
        kind = next(iter(source))
        case(f"roberta {kind}", "roberta", None, files=source)
        case(f"roberta {kind} prefix", "roberta", {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True}, files=source)
        case(f"roberta {kind} added", "roberta", {"tokenizer_class": "RobertaTokenizer"}, files=source, added_tokens={"<new>": len(vocab), "<mask>": 4})
        case(f"roberta {kind} mask", "roberta", {"tokenizer_class": "RobertaTokenizerFast", "mask_token": {"__type": "AddedToken"} | token("<mask>", lstrip=True)}, files=source)
        case(f"roberta {kind} left", "roberta", {"tokenizer_class": "RobertaTokenizer", "truncation_side": "left", "clean_up_tokenization_spaces": True}, files=source)
        case(f"gpt2 {kind}", "llama", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, files=source)
    case("roberta prefix file", "roberta", {"tokenizer_class": "RobertaTokenizer"}, files={"tokenizer.json": "roberta-prefix.json"})
    case("llama declares bytes", "llama", {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}, files={"tokenizer.json": "roberta.json"})
    # LLaMA.
    for source in [{"tokenizer.model": "bpe.model"}, {"tokenizer.json": "llama.json"}]:
        kind = next(iter(source))
        llama = {"tokenizer_class": "LlamaTokenizer"}
        case(f"llama {kind} no class", "llama", None, files=source)
        case(f"llama {kind}", "llama", llama, files=source)
        case(f"llama {kind} ends", "llama", llama | {"add_bos_token": True, "add_eos_token": True}, files=source)
        case(f"llama {kind} legacy", "llama", llama | {"legacy": True, "add_bos_token": True}, files=source)
        case(f"llama {kind} no prefix", "llama", llama | {"add_prefix_space": False}, files=source)
        case(f"llama {kind} decoder", "llama", llama | {"legacy": False, "added_tokens_decoder": {
            "0": token("<unk>"), "1": token("<s>"), "2": token("</s>"), str(len(bpe_vocab)): token("<|im_start|>"), str(len(bpe_vocab) + 1): token("<new>", special=False)},
            "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}, files=source)
        case(f"llama {kind} pad", "llama", llama | {"pad_token": "<pad>"}, files=source, added_tokens={"<pad>": len(bpe_vocab)})
    case("llama model plain pieces", "llama", {"tokenizer_class": "LlamaTokenizer"}, files={"tokenizer.model": "plain-bpe.model"})
    case("llama model of unigram", "llama", None, files={"tokenizer.model": "unigram.model"})
    case("llama model plain decoder", "llama", {"added_tokens_decoder": {"5": token("<new>", special=False), "1": token("<s>")}}, files={"tokenizer.model": "bpe.model"})
    # T5.
    for source in [{"spiece.model": "spiece.model"}, {"tokenizer.json": "t5.json"}]:
        kind = next(iter(source))
        case(f"t5 {kind}", "t5", None, files=source)
        case(f"t5 {kind} extra", "t5", {"tokenizer_class": "T5Tokenizer", "extra_ids": 3}, files=source)
        case(f"t5 {kind} given", "t5", {"tokenizer_class": "T5TokenizerFast", "extra_ids": 2, "additional_special_tokens": ["<extra_id_0>", "<extra_id_1>"], "legacy": False}, files=source)
        case(f"t5 {kind} clean", "t5", {"tokenizer_class": "T5Tokenizer", "clean_up_tokenization_spaces": True}, files=source)
        case(f"t5 {kind} left", "t5", {"tokenizer_class": "T5Tokenizer", "truncation_side": "left"}, files=source)
    case("t5 tokenizer.model", "t5", None, files={"tokenizer.model": "spiece.model"})
    return shared, files, cases


def fill(folder, case, shared, files):
    for name, source in case["files"].items():
        content = shared.get(source) if name == "tokenizer.json" else files[source]
        if name == "tokenizer.json":
            (folder / name).write_text(json.dumps(content, ensure_ascii=False))
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).write_text(content)
    (folder / "config.json").write_text(json.dumps({"model_type": case["model_type"]}))
    for key in ["tokenizer_config", "added_tokens", "special_tokens_map"]:
        if case.get(key) is not None:
            (folder / f"{key}.json").write_text(json.dumps(case[key]))


def found(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    result = {"ids": [tokenizer(text)["input_ids"] for text in TEXTS]}
    result["decoded"] = [tokenizer.decode(ids, skip_special_tokens=True) for ids in result["ids"]]
    pairs = [tokenizer(a, b, truncation=True, max_length=9) for a, b in PAIRS]
    result["pairs"] = [pair["input_ids"] for pair in pairs]
    result["types"] = [pair.get("token_type_ids", [0] * len(pair["input_ids"])) for pair in pairs]
    result["cut"] = tokenizer(TEXTS[2] + TEXTS[0], truncation=True, max_length=6)["input_ids"]
    result["class"] = type(tokenizer).__name__
    return result


def fields():
    """What constructors take by name, and what is taken out of their keyword arguments on the way."""
    classes = [BertTokenizer, RobertaTokenizer, T5Tokenizer, LlamaTokenizer, GPT2Tokenizer, TokenizersBackend, PreTrainedTokenizerBase]
    names = set(PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES) | {"tokenizer_class", "auto_map", "fast_tokenizer_files"}
    for kind in classes:
        names |= set(kind.__init__.__code__.co_varnames[1 : kind.__init__.__code__.co_argcount])
        sources = [getsource(kind.__init__)]
        for method in ["_from_pretrained", "convert_to_native_format", "_convert_from_sentencepiece", "_convert_from_tiktoken"]:
            if hasattr(kind, method):
                sources.append(getsource(getattr(kind, method)))
        for source in sources:
            names |= set(re.findall(r"kwargs\.(?:pop|get|setdefault)\(\s*\"(\w+)\"", source))
            names |= set(re.findall(r"kwargs\[\"(\w+)\"\]", source)) | set(re.findall(r"\"(\w+)\" (?:not )?in (?:init_)?kwargs", source))
    return sorted(names)


if __name__ == "__main__":
    shared, files, cases = all_cases()
    for case in cases:
        with tempfile.TemporaryDirectory() as name:
            fill(Path(name), case, shared, files)
            case["expected"] = found(name)
    encode = lambda content: {"base64": base64.b64encode(content).decode()} if isinstance(content, bytes) else content
    out = {
        "versions": {"tokenizers": tokenizers.__version__, "sentencepiece": sentencepiece.__version__},
        "texts": TEXTS,
        "pairs": PAIRS,
        "files": {name: encode(content) for name, content in files.items()} | {name: json.dumps(content, ensure_ascii=False) for name, content in shared.items()},
        "cases": cases,
    }
    dump = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    parts = [f'"{key}":{dump(value)}' for key, value in out.items() if key != "cases"]
    body = ",\n".join(parts + ['"cases":[\n' + ",\n".join(dump(case) for case in cases) + "\n]"])
    (MODELS / "tokenizer_folders.json").write_text("{" + body + "}\n")
    (MODELS / "tokenizer_fields.json").write_text(json.dumps(fields()) + "\n")
    print(len(cases), "cases")
