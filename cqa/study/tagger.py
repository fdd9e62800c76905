"""Which kinds of knowledge an English text touches, by short word lists (§1.3, §3.2, §3.3).

A tag is given if a strong cue occurs, or two different weak ones; `decision-turn` if a first
judgement is followed by a turn away from it. The lists are ours and blunt: their precision and
recall on a file tagged by hand belong to every count made with them. They know English only;
`is_english` says of a text whether they apply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TYPES = ("intent", "audience", "reality")  # the paper's three kinds of tacit knowledge
EXCLUDED = ("sensory", "preference", "procedural")  # those that it leaves out (§3.3)
TURN = "decision-turn"
TAGS = (*TYPES, TURN, *EXCLUDED)

# fmt: off
STRONG = {
    "intent": [
        r"authors?", r"the writer", r"narrators?", r"narrati(?:on|ve)", r"metaphors?", r"imagery",
        r"subtext", r"foreshadow\w*", r"themes?", r"thematic\w*", r"motifs?", r"point of view",
        r"viewpoint", r"word choice", r"pacing", r"characteri[sz]ation", r"tone",
        r"(?:book|story|novel|play|poem|film|novella) (?:is|was) (?:about|built|made|meant)",
        r"(?:main|central|stated) subject", r"sentence length",
        r"you (?:said|want|wanted) ", r"show,? (?:and )?(?:don't|not) tell",
    ],
    "audience": [
        r"readers?", r"readership", r"audiences?", r"viewers?", r"spectators?", r"listeners?",
        r"players?", r"suspense", r"dramatic irony", r"everyone (?:who|is waiting)",
        r"(?:whoever|anyone|those who|people who|nobody who) (?:\w+ )?(?:reads?|follow\w*|watch\w*)",
        r"we (?:are|have been|were) (?:told|shown|given|promised|waiting)",
        r"we (?:already |now |have |will |shall |should )?(?:know|expect|guess|suspect|wait|learn)",
    ],
    "reality": [
        r"in (?:real life|reality|practice|fact)", r"real[- ](?:life|world|people)",
        r"realis(?:m|tic|tically)", r"unrealistic\w*", r"(?:im)?plausib\w+", r"(?:un)?believabl\w+",
        r"would (?:\w+ )?(?:actually|really|never|hardly|not have|have to|rather)", r"wouldn't",
        r"anachronis\w+", r"(?:no|nobody|no one|anyone|anybody|somebody|someone|people|men|women|"
        r"children) (?:who|in|of|with|on) \w+ (?:\w+ )?(?:would|will|do|does|has|have|can|is|are|"
        r"live|lives|learn|keep|lose)", r"nobody \w+ (?:would|will)", r"survivors?", r"trauma\w*",
        r"psycholog\w+", r"don't (?:hold|work|happen)", r"as (?:it|they) (?:does|do) in life",
    ],
    "sensory": [
        r"(?:doesn't|does not|didn't|did not) (?:\w+ )?(?:read|sound|feel|sit) (?:right|well|true)",
        r"(?:reads|sounds|feels|looks) (?:wrong|off|heavy|clumsy|clunky|right)(?: to (?:me|my))?",
        r"my (?:own )?ear", r"by ear", r"in the mouth", r"can(?:'t|not) (?:say|explain) why",
        r"don't know why", r"put my finger on", r"my gut", r"gut feeling",
    ],
    "preference": [
        r"personally", r"(?:my|of) (?:own )?taste", r"favou?rites?", r"not (?:really )?my thing",
        r"i(?:'ve| have)? (?:just |really |simply |never |always |do not |don't )*(?:dis)?liked?",
        r"i(?:'ve| have)? (?:just |really |never |always |been )*(?:prefer|preferred|hated?|loved?)",
        r"cup of tea", r"(?:have )?(?:always been )?fond(?:er)? of", r"(?:can't|could never) stand",
    ],
    "procedural": [
        r"(?:write|draft) (?:the|a|your) (?:\w+ )?(?:first|last)", r"first draft", r"outline first",
        r"(?:index|separate) cards?", r"(?:every|each) (?:morning|evening)", r"(?:an hour|words) a day",
        r"word count", r"(?:first|second|next|final) pass", r"set a timer", r"writer's block",
        r"(?:start|begin|end) (?:with|by) (?:writing|drafting|outlining)", r"print (?:it|them) out",
        r"in a drawer", r"keep a (?:log|notebook|diary|journal)", r"before (?:the|your) deadline",
    ],
}
WEAK = {
    "intent": [
        r"voice", r"style", r"images?", r"symbol\w*", r"rhythm", r"structure", r"dialogue",
        r"endings?", r"openings?", r"scenes?", r"plot", r"craft", r"technique", r"sentences?",
        r"drafts?", r"chapters?", r"paragraphs?", r"conflict", r"tension", r"climax", r"design",
        r"form", r"prose", r"poem", r"stor(?:y|ies)", r"novel", r"subject", r"book", r"genre",
    ],
    "audience": [
        r"expect\w*", r"surpris\w+", r"guess\w*", r"suspect\w*", r"wonder\w*", r"remember\w*",
        r"notic\w+", r"reveal\w*", r"withhold\w*", r"confus\w+", r"curio\w+", r"anticipat\w+",
        r"empath\w+", r"attention", r"skim\w*", r"forgiv\w+", r"us", r"we", r"they'll", r"page",
        r"pages", r"look away", r"trust\w*", r"promis\w+", r"recogni[sz]e\w*", r"laugh\w*",
    ],
    "reality": [
        r"law\w*", r"police\w*", r"courts?", r"judges?", r"solicitors?", r"hospitals?", r"doctors?",
        r"nurses?", r"wards?", r"patients?", r"diagnos\w+", r"evidence", r"licen[cs]\w+",
        r"(?:trained|training)", r"the trade", r"wages?", r"rent", r"grief", r"fear", r"shame",
        r"stroke", r"blood", r"weather", r"tides?", r"winter", r"period", r"customs?", r"real",
        r"years", r"habit", r"job", r"work", r"because (?:he|she|they|the)", r"knows?",
    ],
}
FIRST = [
    r"at first", r"initially", r"my first (?:\w+ )?(?:answer|thought|choice|instinct|impulse)",
    r"i (?:had|was|would have|could have|almost|nearly|began|wanted|liked|meant|first|once)",
    r"(?:is|looks?|seems?|seemed|was) tempting", r"the (?:obvious|natural) (?:choice|answer)",
    r"for a (?:while|week|month|day)",
]
TURNED = [
    r"but", r"however", r"yet", r"though", r"then i", r"until", r"on reflection",
    r"second thoughts?", r"changed (?:my|it)", r"the (?:trouble|difficulty|problem) (?:is|was|with)",
    r"instead", r"given (?:that|this|the)",
]
FUNCTION_WORDS = frozenset(
    "the and of to is that it for with as are this be on you by or from have not at which but his "
    "her they we she would when there what if has".split()
)
# fmt: on
MIN_WORDS, MIN_SHARE = 5, 0.15  # of function words among all; prose in English has 0.3 to 0.5


@dataclass(frozen=True, slots=True)
class Cues:
    """The patterns of one tag."""

    strong: re.Pattern[str]
    weak: re.Pattern[str] | None

    def found_in(self, text: str) -> bool:
        """Whether a text in lower case has a strong cue, or two different weak ones."""
        if self.strong.search(text):
            return True
        return self.weak is not None and len(set(self.weak.findall(text))) > 1


def _pattern(cues: list[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(cues)})(?!\w)")


CUES = {
    tag: Cues(_pattern(STRONG[tag]), _pattern(WEAK[tag]) if tag in WEAK else None) for tag in STRONG
}
_FIRST, _TURNED = _pattern(FIRST), _pattern(TURNED)
_WORD = re.compile(r"[^\W\d_]+")


def tags_of(text: str) -> frozenset[str]:
    """Return the tags of an English text."""
    folded = text.casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    found = {tag for tag, cues in CUES.items() if cues.found_in(folded)}
    first = _FIRST.search(folded)
    if first and _TURNED.search(folded, first.end()):
        found.add(TURN)
    return frozenset(found)


def is_english(text: str) -> bool:
    """Whether a text is English enough, and long enough, for the word lists to apply."""
    words = _WORD.findall(text.casefold())
    n_known = sum(word in FUNCTION_WORDS for word in words)
    return len(words) >= MIN_WORDS and n_known >= MIN_SHARE * len(words)
