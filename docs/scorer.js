// What a search finds first: a page for readers before the reference, the reference before the developers' pages.
var Scorer = {
  score: ([page, title, anchor, description, score, file, kind]) => {
    const folder = page.split("/")[0];
    if (page.endsWith("index")) return score;
    if (["tutorials", "howto", "coming_from", "getting_started"].includes(folder)) return score + 12;
    if (["explain", "reference", "benchmarks"].includes(folder)) return score + 6;
    if (["sparsify", "condense", "inputs", "learner", "graph", "core", "studies", "eeg", "all", "demo", "moved", "changelog", "contributing"].includes(folder)) return score / 4;
    return score;
  },
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
