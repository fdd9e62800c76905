"""Which kinds of knowledge an English text touches, by short word lists (§1.3, §3.2, §3.3).

A tag is given if a strong cue occurs, or two different weak ones within a sentence; `decision-turn`
if a first judgement is followed by a turn away from it. The lists are ours and blunt: their
precision and recall on a file tagged by hand belong to every count made with them. They know
English only; `is_english` says of a text whether they apply.
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
        r"viewpoint", r"word choice", r"pacing", r"characteri[sz]ation", r"tone", r"sonnets?",
        r"rhym(?:es?|ing)", r"stanzas?", r"(?:main|central|stated) subject",
        r"(?:book|story|novel|play|poem|film|novella) (?:is|was) (?:about|built|made|meant)",
        r"you (?:said|want|wanted)", r"show,? (?:and )?(?:don't|not) tell",
    ],
    "audience": [
        r"readers?", r"readership", r"audiences?", r"viewers?", r"spectators?", r"listeners?",
        r"players?", r"shoppers", r"customers", r"suspense", r"dramatic irony", r"whoever",
        r"(?:everyone|anyone|those|people|nobody) (?:who )?(?:\w+ )?(?:reads?|follow|watch)\w*",
        r"we (?:are|have been|were) (?:told|shown|given|promised|waiting)",
        r"we (?:already |now |have |will |shall |should )?(?:know|expect|guess|suspect|learn)",
        r"(?:be|is|are) read as", r"one (?:imagines|reads|expects|skims|wonders|guesses)",
    ],
    "reality": [
        r"in (?:real life|reality|practice)", r"real[- ](?:life|world|people)", r"unrealistic\w*",
        r"realis(?:m|tic|tically)", r"(?:im)?plausib\w+", r"(?:un)?believabl\w+", r"wouldn't",
        r"would (?:\w+ )?(?:actually|really|never|hardly|not have|have to|rather)",
        r"(?:could not|couldn't) (?:have|open|see|hear|know|read)", r"anachronis\w+",
        r"survivors?", r"trauma\w*", r"nobody \w+ (?:would|will)", r"truer? to (?:life|the)",
        r"(?:no one|nobody|any(?:one|body)|some(?:one|body)|people|men|women|children) (?:who|of)",
        r"(?:someone|people|men|women|children) with", r"don't (?:hold|work|happen)",
        r"psycholog\w+",
    ],
    "sensory": [
        r"(?:doesn't|does not|didn't|did not) (?:\w+ )?(?:read|sound|feel|sit) (?:right|well|true)",
        r"(?:reads|sounds|feels|looks) (?:wrong|off|heavy|clumsy|clunky|right)(?: to (?:me|my))?",
        r"my (?:own )?ear", r"by ear", r"in the mouth", r"can(?:'t|not) (?:say|explain) why",
        r"don't know why", r"put my finger on", r"my gut", r"gut feeling",
    ],
    "preference": [
        r"personally", r"(?:my|of) (?:own )?taste", r"favou?rites?", r"not (?:really )?my thing",
        r"i (?:don't|do not|never) (?:\w+ )?(?:enjoy|care for)", r"i hate", r"prejudices?",
        r"i(?:'ve| have)? (?:always|never) (?:really )?(?:liked|loved|hated|enjoyed|preferred)",
        r"cup of tea", r"(?:always been )?fond(?:er)? of", r"(?:can't|could never|able to) stand",
        r"i(?:'m| am) not (?:much|really|one)", r"i don't,? as a rule",
    ],
    "procedural": [
        r"(?:write|draft) (?:the|a|your) (?:\w+ )?(?:first|last)", r"first draft", r"outline first",
        r"(?:index|separate) cards?", r"(?:every|each) (?:morning|evening)", r"word count",
        r"(?:an hour|words) a day", r"(?:first|second|next|final) pass", r"set a timer",
        r"(?:start|begin|end) (?:with|by) (?:writing|drafting|outlining)", r"print (?:it|them) out",
        r"in a drawer", r"keep a (?:log|notebook|diary|journal)", r"before (?:the|your) deadline",
        r"writer's block",
    ],
}
WEAK = {
    "intent": [
        r"voice", r"style", r"images?", r"symbol\w*", r"rhythm", r"structure", r"dialogue",
        r"endings?", r"openings?", r"scenes?", r"plot", r"craft", r"technique", r"sentences?",
        r"drafts?", r"chapters?", r"paragraphs?", r"conflict", r"tension", r"climax", r"design",
        r"form", r"prose", r"poems?", r"stor(?:y|ies)", r"novels?", r"subject", r"books?", r"genre",
        r"acts?", r"plays?", r"lines?", r"verses?", r"stage", r"farce", r"films?", r"titles?",
    ],
    "audience": [
        r"expect\w*", r"surpris\w+", r"guess\w*", r"suspect\w*", r"wonder\w*", r"remember\w*",
        r"notic\w+", r"reveal\w*", r"withhold\w*", r"confus\w+", r"curio\w+", r"anticipat\w+",
        r"empath\w+", r"attention", r"skim\w*", r"forgiv\w+", r"us", r"we", r"they'll", r"pages?",
        r"look away", r"trust\w*", r"promis\w+", r"recogni[sz]e\w*", r"laugh\w*", r"impatien\w+",
    ],
    "reality": [
        r"law\w*", r"police\w*", r"courts?", r"judges?", r"solicitors?", r"hospitals?", r"doctors?",
        r"nurses?", r"wards?", r"patients?", r"diagnos\w+", r"evidence", r"licen[cs]\w+",
        r"train(?:ed|ing)", r"trade", r"wages?", r"rent", r"grief", r"fear", r"shame", r"stroke",
        r"blood", r"weather", r"tides?", r"winter", r"customs?", r"real", r"years", r"habit",
        r"job", r"often", r"usually", r"rarely", r"seldom", r"always", r"never", r"nobody",
        r"people", r"someone", r"somebody", r"would", r"cannot", r"can't", r"couldn't", r"knows?",
        r"learn",
    ],
}
FIRST = [
    r"at first", r"initially", r"surely", r"my (?:first|instinct|answer|pick|plan)", r"my outline",
    r"was my (?:\w+ )?(?:answer|thought|pick|plan|choice)", r"(?:me|i) said (?:no|yes)",
    r"i (?:had|was|would have|could have|almost|nearly|began|wanted|liked|meant|first|once)",
    r"i'd (?:have|been|had|pencilled|written)", r"i (?:ruled|dismissed|distrusted|advised)",
    r"i thought", r"(?:is|was|sounded) (?:\w+ )?(?:tempting|right|fair|plausible)",
    r"(?:look|seem)(?:s|ed)? (?:\w+ )?(?:tempting|right|fair|plausible|owed)",
    r"(?:obvious|natural) (?:choice|answer|scene|correction)", r"for a (?:while|week|month|day)",
]
TURNED = [
    r"but", r"however", r"yet", r"though", r"then i", r"until", r"on reflection", r"instead",
    r"second thoughts?", r"changed (?:my|it)", r"given (?:that|this|the)", r"unfortunately", r"nor",
    r"(?:the|my) (?:trouble|difficulty|problem|doubt) (?:is|was|with|began)", r"turned out",
]
FUNCTION_WORDS = frozenset([
    "the", "and", "of", "to", "is", "that", "it", "for", "with", "as", "are", "this", "be", "on",
    "you", "by", "or", "from", "have", "not", "at", "which", "but", "his", "her", "they", "we",
    "she", "would", "when", "there", "what", "if", "has",
])
# fmt: on
MIN_WORDS, MIN_SHARE = 5, 0.2  # of function words among all; prose in English has 0.3 to 0.5


@dataclass(frozen=True, slots=True)
class Cues:
    """The patterns of one tag."""

    strong: re.Pattern[str]
    weak: re.Pattern[str] | None

    def found_in(self, text: str) -> bool:
        """Whether a text in lower case has a strong cue, or two weak ones in a sentence."""
        if self.strong.search(text):
            return True
        if self.weak is None:
            return False
        return any(len(set(self.weak.findall(s))) > 1 for s in _SENTENCE_END.split(text))


def _pattern(cues: list[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(cues)})(?!\w)")


CUES = {
    tag: Cues(_pattern(STRONG[tag]), _pattern(WEAK[tag]) if tag in WEAK else None) for tag in STRONG
}
_FIRST, _TURNED = _pattern(FIRST), _pattern(TURNED)
_SENTENCE_END = re.compile(r"[.!?;]+\s")
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
