"""Names that nobody should give, one list for every medium that shows them."""

STRINGS = [
    "\x1b]0;owned\x07", "\x1b[31mred\x1b[0m", "\x9b31m", "a\x00b", "\x7f", "\x0c\x0b",
    "\r", "a\rb", "a\r\nb", "a\nb", "\ttab", "\x85\u2028\u2029",
    "right \u202e left", "\ufeff", "\u200b", "a\u200db", "\U000e0041", "\ufffe\uffff", "\ud800",
    "=1+1", '=HYPERLINK("http://x","y")', "+1", "+cmd|' /C calc'!A0", "-0.5", "-2+3", "-", "--",
    "@SUM(A1)", "＝1+1", "'=1", "''=1", "'quoted'", "n/a", "'n/a", "", " ", "None",
    '"', 'a","b', "a,b;c", "</script><script>alert(1)</script>", "<!--", "]]>", "<![CDATA[",
    "<img src=x onerror=alert(1)>", "&amp; &lt;b&gt; &#60;", "' onclick='x", "{{ 7 * 7 }}",
    "a | b \\| c", "`code` ``", "*bold* _it_ ~~gone~~", "[a](http://b)", "![a](b)", "<http://a.b>",
    "https://a.b www.a.b a@b.c", "# title", "- item", "+ item", "1. one", "12) twelve", "> quote",
    "---", "===", "| a | b |", ":rocket: [red]x[/red]", "    code", "$x_1^2$ $$",
    "[1ex] x", " [x]", "*", "\\\\[1ex]", "\\input{/etc/passwd}", "\\", "%", "^^41 ^^5cinput", "#1",
    "{", "}", "{}~^", "a~b\\end{tabular}", "?` !` `` ''", "_hidden", "$\\alpha$", "é 漢字 שלום",
    "👩\u200d👩\u200d👧", "x" * 5000,
]  # fmt: skip
