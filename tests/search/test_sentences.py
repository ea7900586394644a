"""The sentences with which an index is measured."""

from retrieval.search.sentences import SENTENCES, spread


def test_sentences_are_many_short_and_different():
    assert 150 <= len(SENTENCES) <= 250
    assert len({sentence.lower() for sentence in SENTENCES}) == len(SENTENCES)
    for sentence in SENTENCES:
        assert sentence == sentence.strip() and 2 <= len(sentence.split()) <= 9, sentence


def test_a_few_are_taken_from_all_groups():
    few = spread(50)
    assert len(set(few)) == 50 and set(few) <= set(SENTENCES)
    places = [SENTENCES.index(sentence) for sentence in few]
    gaps = [after - before for before, after in zip(places, places[1:], strict=False)]
    assert places == sorted(places) and max(gaps) - min(gaps) <= 1
    assert spread(10_000) == list(SENTENCES)
