"use strict";
/* The figures of a review. They equal those of defect_rates() in decisions.py; a test compares. */

function wilson(data, rate, number) {
  const square = (data.z * data.z) / number;
  const middle = (rate + square / 2) / (1 + square);
  const half = Math.sqrt(square * rate * (1 - rate) + (square * square) / 4) / (1 + square);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

function ratesByCategory(data, decisions) {
  return data.categories.map(([name, numDrafts]) => {
    const made = decisions.filter((one, number) => one && data.cards[number].category === name);
    const numReviewed = made.length;
    const numRejected = made.filter((one) => one.decision === "reject").length;
    const rate = numReviewed ? numRejected / numReviewed : null;
    const interval = numReviewed ? wilson(data, rate, numReviewed) : [0, 1];
    return { name, numDrafts, numReviewed, numRejected, rate, interval };
  });
}

function overall(data, rates) {
  const known = rates.filter((one) => one.numReviewed);
  const sum = (value) => known.reduce((total, one) => total + value(one), 0);
  const numDrafts = sum((one) => one.numDrafts);
  const numReviewed = sum((one) => one.numReviewed);
  const numRejected = sum((one) => one.numRejected);
  const rate = numReviewed ? sum((one) => one.numDrafts * one.rate) / numDrafts : null;
  const effective = numDrafts ** 2 / sum((one) => one.numDrafts ** 2 / one.numReviewed);
  const interval = numReviewed ? wilson(data, rate, effective) : [0, 1];
  return { numDrafts, numReviewed, numRejected, rate, interval };
}
