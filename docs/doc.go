// Package docs has no code: the tests beside these pages compare them with the
// program.
package docs
