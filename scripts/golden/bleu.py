"""Writes peft-bench/tests/golden/bleu.json: corpus BLEU by sacrebleu with its defaults, and what Python takes for blanks.

Usage: python scripts/golden/bleu.py
"""

import json
import random
import sys
import unicodedata
from pathlib import Path

from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

OUTPUT = Path(__file__).resolve().parents[2] / "peft-bench" / "tests" / "golden" / "bleu.json"
TOKENIZE = Tokenizer13a()

# Each a pair of hypothesis and reference, or a list of them.
BY_HAND = {
    "equal": ("The cat sat on the mat.", "The cat sat on the mat."),
    "case counts": ("the Cat sat on the mat.", "The cat sat on the mat."),
    "one token": ("cat", "cat"),
    "three tokens": ("cat sat there", "cat sat there"),
    "four tokens": ("cat sat there today", "cat sat there today"),
    "short sentence": ("A dog ran.", "A dog ran off."),
    "no match at all": ("alpha beta gamma delta", "one two three four"),
    "unigrams only": ("d c b a e", "a b c d e"),
    "bigrams only": ("a b x c d y e f", "a b c d e f g h"),
    "trigrams only": ("a b c x d e f y", "a b c d e f g h"),
    "bigrams but no 3-gram possible": ("a b", "a b c d"),
    "too long": ("the the the the the the the", "the cat is on the mat"),
    "too short": ("the cat", "the cat sat on the mat and slept all day"),
    "empty hypothesis": ("", "something was said"),
    "empty reference": ("something was said here", ""),
    "both empty": ("", ""),
    "empty among others": [("", "Nothing here."), ("The house is big and old.", "The house is big and old.")],
    "all empty": [("", "one"), ("   ", "two three"), ("\t", "four")],
    "blanks around": ("  The   cat  sat on\tthe mat. ", "The cat sat on the mat."),
    "entities": ("&quot;A &amp; B&quot; &lt;b&gt; said &amp;lt; he", '"A & B" <b> said &lt; he'),
    "entities that stay": ("&apos;tis &nbsp; &#39; &amp;amp;quot; R&D &amp", "&apos;tis &nbsp; &#39; &amp;quot; R&D &"),
    "numbers": ("It cost 1,234.56 or 1.234,56, about 3.5.", "It cost 1,234.56 or 1.234,56 about 3.5 ."),
    "periods": ("U.S. firms e.g. IBM... No. 5 .5 5. 5.a a.5 ..5 5..", "U.S. firms e.g. IBM ... No. 5 .5 5. 5.a a.5 ..5 5.."),
    "commas": ("a,b 1,b a,1 1,1 ,, ,a ,1 1,", "a , b 1 , b a , 1 1,1 , , ,a ,1 1 ,"),
    "dashes": ("1990-1995 co-operate 5-year F-16 -5 5- 5--6 a-", "1990 - 1995 co-operate 5 - year F-16 -5 5 - 5 - - 6 a-"),
    "stops beside dashes": ("3.-4 3,-4 -.5 -,5 1.2-3.4 1-.2", "3 . -4 3 , - 4 - . 5 -,5 1.2 - 3.4 1 - .2"),
    "apostrophes": ("don't 'quote' it's 90's", "don ' t 'quote' it's 90 's"),
    "all punctuation": (
        "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ a!b\"c#d$e%f&g'h(i)j*k+l,m-n.o/p:q;r<s=t>u?v@w[x\\y]z^a_b`c{d|e}f~g",
        "! \" # $ % & ' ( ) * + , - . / : ; < = > ? @ [ \\ ] ^ _ ` { | } ~ a ! b",
    ),
    "skipped": ("a <skipped> b c<skipped>d e f", "a b cd e f"),
    "line breaks": ("a bro-\nken line\nand more-\n", "a broken line and more-"),
    "carriage return": ("one two\rthree four\r\n", "one two three four"),
    "romanian": (
        "Șeful ONU declară că nu există soluții militare în Siria.",
        "Şeful ONU declară că nu există soluţii militare în Siria.",
    ),
    "romanian quotes": (
        "Acesta a spus: „nu există o soluție militară” – și a plecat…",
        "El a spus că „nu există o soluție militară” – și a plecat…",
    ),
    "composed or not": ("în ață să", unicodedata.normalize("NFD", "în ață să") + " în"),
    "digits of other scripts": ("٣.٥ ३,५ １.２ x² 5-६ ६-5", "٣ . ٥ ३ , ५ １ . ２ x² 5 - ६ ६-5"),
    "letters of other scripts": ("Ελλάδα. Привет, мир! 你好。 こんにちは、世界", "Ελλάδα . Привет , мир ! 你好。 こんにちは、世界"),
    "blanks of Unicode": ("a\u00a0b\u2003c\u3000d\u2028e\u0085f\u202fg", "a b c d e f g"),
    "separators of ASCII": ("a\x1cb\x1dc\x1ed\x1fe f\x1f", "a b c d e f"),
    "no blanks": ("a\u200bb\ufeffc\u180ed\u2060e f g h", "a\u200bb\ufeffc\u180ed\u2060e f g h"),
    "beyond the basic plane": ("𝔸.𝔹 😀,😀 😀- 5😀 1.😀", "𝔸 . 𝔹 😀 , 😀 😀- 5😀 1 . 😀"),
    "clipped counts": [("a a a a b", "a a b c d"), ("a b a b", "b a b a")],
    "smoothing over a corpus": [("x y", "y x"), ("p q r", "q p r"), ("m n", "n m o")],
    "longer somewhere, shorter elsewhere": [("a b c d e f", "a b c"), ("g h", "g h i j k l m n")],
}


def case(name, pairs):
    hypotheses, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    score = BLEU().corpus_score(hypotheses, [references])
    return {
        "name": name,
        "hypotheses": hypotheses,
        "references": references,
        "tokens": [TOKENIZE(text.rstrip()) for text in hypotheses + references],
        "score": score.score,
        "precisions": score.precisions,
        "brevity_penalty": score.bp,
        "matches": score.counts,
        "totals": score.totals,
        "lengths": [score.sys_len, score.ref_len],
        "printed": str(score),
    }


def drawn(seed):
    """A corpus whose hypotheses are references with words dropped, repeated, replaced and swapped."""
    rng = random.Random(seed)
    words = "casa mare și veche, nu-i 3.5 1990-1995 (circa) „așa” țară în U.S. e.g. 12,000 &amp; pe-o l'eau % ... însă".split()
    pairs = []
    for _ in range(rng.randint(1, 12)):
        reference = [rng.choice(words) for _ in range(rng.randint(1, 25))]
        found = []
        for word in reference:
            found += rng.choices([[word], [], [word, word], [rng.choice(words)]], [8, 1, 0.5, 2])[0]
        if len(found) > 2 and rng.random() < 0.5:
            i = rng.randrange(len(found) - 1)
            found[i], found[i + 1] = found[i + 1], found[i]
        pairs.append((" ".join(found) + rng.choice(["", ".", " ."]), " ".join(reference) + "."))
    return pairs


def garbage(seed):
    """Characters that mean something to the tokenizer, in any order."""
    rng = random.Random(seed)
    line = lambda: "".join(rng.choices("a1.,-&; '<\u00a0\x1dă٣\n", k=rng.randint(0, 60)))
    return [(text, line() + text) for text in (line() for _ in range(8))]


def main():
    listed = {name: pairs if isinstance(pairs, list) else [pairs] for name, pairs in BY_HAND.items()}
    cases = [case(name, pairs) for name, pairs in listed.items()]
    cases += [case(f"drawn {seed}", drawn(seed)) for seed in range(20)]
    cases += [case(f"garbage {seed}", garbage(seed)) for seed in range(6)]
    metric = BLEU()
    metric.corpus_score(["a"], [["a"]])
    blanks = [c for c in range(sys.maxunicode + 1) if chr(c).isspace()]
    golden = {"signature": str(metric.get_signature()), "blanks": blanks, "cases": cases}
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(golden, ensure_ascii=True, indent=None) + "\n")
    print(len(cases), "corpora,", golden["signature"])


if __name__ == "__main__":
    main()
