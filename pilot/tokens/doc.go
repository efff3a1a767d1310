// Package tokens keeps which JSON Web Tokens are revoked.
//
// The main entry point is [Open]: a [List] in a file, to which revocations are
// added and from which they are taken back. When Add or Remove returns, the change
// is on disk. The file is a log, one line for each change with a check sum before
// it, and written anew when more than half of it says nothing any more.
//
// What is damaged is not guessed at: a last line that is cut off was never
// acknowledged and is left out, but any other damage is an error of Open, so that
// nobody takes a part of the list for all of it.
package tokens
