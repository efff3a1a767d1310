// Package audience says for whom a JWT-SVID may be: a few short names, because
// tokens travel in HTTP headers.
package audience

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The bounds of a token's audiences.
const (
	maxNames = 16
	maxName  = 512
	maxTotal = 2048
)

// Check says what is wrong with the audiences that a token is wanted for, and
// returns them without repetitions.
func Check(in []string) ([]string, error) {
	if len(in) == 0 {
		return nil, errors.New("no audience: a token has to name whom it is for")
	}
	if len(in) > maxNames {
		return nil, fmt.Errorf("%d audiences: want %d at most", len(in), maxNames)
	}
	total := 0
	out := make([]string, 0, len(in))
	for _, a := range in {
		switch {
		case a == "" || len(a) > maxName:
			return nil, fmt.Errorf("an audience has %d bytes: want 1 to %d", len(a), maxName)
		case !utf8.ValidString(a) || strings.ContainsFunc(a, unicode.IsControl):
			return nil, fmt.Errorf("audience %q: want printable text", a)
		}
		if total += len(a); total > maxTotal {
			return nil, fmt.Errorf("the audiences have more than %d bytes together", maxTotal)
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}
