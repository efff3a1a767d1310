// Package listsource gets the entries of AccessLists from where they say: from a URL
// or a file. Keeper.Set tells it which lists there are, Keeper.Run looks at each of
// them again and again, and Keeper.Fetched gives what is in force.
//
// What was good last stays in force whatever becomes of its source, and over a
// restart, unless the list has a maxAge and that is over. A body is taken as a whole
// or not at all: it is not taken if it is larger than a mebibyte, is HTML, has no line,
// or has one that is no entry. What a server answers is nowhere shown, so that who may
// write an AccessList cannot read through it what only pilot can reach.
//
// Package fetch does the fetching and says what may not be fetched; a redirect stays
// with the scheme.
package listsource
