package checkpoint

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Statement signs lines as the authority's word. kind says what they are about; one
// that is no number keeps them apart from checkpoints.
func (s *Signer) Statement(kind string, lines ...string) ([]byte, error) {
	text := s.Log + "\n" + kind + "\n" + strings.Join(lines, "\n") + "\n"
	out, err := note.Sign(&note.Note{Text: text}, s.signer)
	if err != nil {
		return nil, fmt.Errorf("sign the statement: %w", err)
	}
	return out, nil
}

// OpenStatement gives the lines of a statement of that kind back, if this key signed
// it.
func (s *Signer) OpenStatement(text []byte, kind string) ([]string, error) {
	v, err := note.NewVerifier(s.Verifier)
	if err != nil {
		return nil, fmt.Errorf("the log's public key: %w", err)
	}
	n, err := note.Open(text, note.VerifierList(v))
	if err != nil {
		return nil, fmt.Errorf("the statement is not signed by %s: %w", s.Log, err)
	}
	lines := strings.Split(strings.TrimSuffix(n.Text, "\n"), "\n")
	if len(lines) < 2 || lines[0] != s.Log || lines[1] != kind {
		return nil, errors.New("the statement is about something else")
	}
	return lines[2:], nil
}
