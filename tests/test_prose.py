"Numbers that stand in the prose of a page are those of the file of results that it names."
import json, re
from pathlib import Path
import pandas as pd, pytest

root = Path(__file__).resolve().parent.parent

def prose(page): return '\n'.join(''.join(c['source']) for c in json.loads((root/'nbs'/f'{page}.ipynb').read_text(encoding='utf-8'))['cells'] if c['cell_type']=='markdown')
def table(name): return pd.read_csv(root/'results'/f'{name}.csv')

def warm_and_cold(budget):
    "Accuracies of the two ways a path begins its fits, in percent, and their difference, paired by seed: mean, standard error, seeds."
    d = table('compression_path')
    d = d[(d.context=='local') & (d.end_epoch==.75) & (d.budget==budget)]
    by = 100*d.pivot_table(index='seed', columns='warm_start', values='accuracy').dropna()
    gain = by[True]-by[False]
    return by[True].mean(),by[False].mean(),gain.mean(),gain.sem(),len(by)

def warm_start_at_12_percent():
    warm,cold,gain,se,n = warm_and_cold(.12)
    return warm,cold,n,gain,se

def gains_of_warm_starts():
    (_,_,gain,se,n),(_,_,gain_12,se_12,_) = warm_and_cold(.25),warm_and_cold(.12)
    return n,gain,se,gain_12,se_12

# page and words with the numbers in groups -> what they have to be
said = {
    ('howto/11_budget', r'with 12 % of the MACs, the first came to ([\d.]+) % and the second to ([\d.]+) %; the difference, paired over (\d+) seeds, is ([\d.]+) points, with a standard error of ([\d.]+)'): warm_start_at_12_percent,
    ('learner/11_compression_path', r'Paired over (\d+) seeds, on the digits below, the first is better by ([\d.]+) points \(standard error ([\d.]+)\) at a quarter of the multiply-accumulates, and by ([\d.]+) \(([\d.]+)\) at 12 %'): gains_of_warm_starts}

@pytest.mark.parametrize('page,words', said, ids=lambda o: o if '/' in o and ' ' not in o else '')
def test_numbers_are_those_of_the_results(page, words):
    found = re.search(words, prose(page))
    assert found, 'the sentence is another one: change it here, too'
    for text,value in zip(found.groups(), said[page,words](), strict=True):
        digits = len(text.partition('.')[2])
        assert abs(float(text)-value) <= .5*10**-digits + 1e-9, f'{page} says {text}, the results {value:.4f}'

@pytest.mark.parametrize('page', [p.relative_to(root/'nbs').with_suffix('').as_posix() for p in (root/'nbs').rglob('*.ipynb')])
def test_a_sentence_that_names_results_and_numbers_is_compared(page):
    "A number beside the name of a table is computed on the page, or in the list above."
    text = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', prose(page))
    for p,words in said:
        if p==page: text = re.sub(words, '', text)
    sentences = re.split(r'\n\s*\n|\n(?=[-|])|(?<=[.:])\s+(?=[A-Z`-])', re.sub(r'\$[^$]*\$', '', text))
    loose = [s for s in sentences if re.search(r'results/\w+\.csv', s) and re.search(r'\d\.\d|\d %', s)]
    assert not loose
