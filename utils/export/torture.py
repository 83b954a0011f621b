"""
Texts on which tokenizers disagree: blanks, control bytes, other scripts, joined emoji, spelled markers.

    token_gate(path, [*corpus_texts, *TORTURE_TEXTS], ...)
"""

TORTURE_TEXTS = [
    "",
    " ",
    "   ",
    "a  b   c    d",
    "\n\n\n",
    "\t\ttabs\t",
    "line\r\nline\r\n",
    "trailing   ",
    "def f(x):\n    return x\n",
    "for (int i = 0; i < n; ++i) { a[i] += 1; }",
    "3.14159e-10 1234567890",
    "don't I'll we've",
    "caf\u00e9 na\u00efve",
    "e\u0301 n\u0303",
    "\u4f60\u597d\u4e16\u754c",
    "\u3053\u3093\u306b\u3061\u306f",
    "\u041f\u0440\u0438\u0432\u0435\u0442",
    "\u0645\u0631\u062d\u0628\u0627",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u201ccurly\u201d \u2014 dash",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<s>text</s><unk><pad>",
    "<0x0A><0xFF>",
    "\u2581\u2581under",
    "a" * 200,
    "\u0001\u0002\u0007\u001b[0m",
    "\u00a0nbsp\u200bzero\ufeff",
    '{"a": [1, 2.5, null]}',
    "MiXeD CaSe ALLCAPS",
]
