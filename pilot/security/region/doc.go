// Package region computes exactly on sets of requests. A request is a point with
// one coordinate for each of a few variables: texts, such as a path, and network
// addresses. Rules test one variable at a time, by regular expressions and address
// blocks; the values of a variable that no test tells apart are one cell, so that
// a question about all requests becomes one about finitely many products of cells.
//
// One makes a [Space], adds variables ([Space.Text], [Space.Address]) and their
// tests ([Var.Match], [Var.Within]), lets it find the cells ([Space.Split]), makes
// [Term]s of the tests' sets, and asks [Space.Partition] where groups of terms
// have which outcome.
//
// It guarantees exactness: every value of a cell has the same answer to every
// test, and every cell has a value, of which it keeps one. Where the cells or
// regions are more than a bound it gives an error, never a guess. It is pure and
// knows nothing of policies.
package region
