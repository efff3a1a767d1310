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

// OpenStatement gives the lines of a statement of that kind about a log back, if one
// of the keys signed it. Keys that cannot be read are none.
func OpenStatement(text []byte, log, kind string, verifiers ...string) ([]string, error) {
	var known []note.Verifier
	for _, text := range verifiers {
		if v, err := note.NewVerifier(strings.TrimSpace(text)); err == nil && v.Name() == log {
			known = append(known, v)
		}
	}
	n, err := note.Open(text, note.VerifierList(known...))
	if err != nil {
		return nil, fmt.Errorf("the statement is not signed by %s: %w", log, err)
	}
	lines := strings.Split(strings.TrimSuffix(n.Text, "\n"), "\n")
	if len(lines) < 2 || lines[0] != log || lines[1] != kind {
		return nil, errors.New("the statement is about something else")
	}
	return lines[2:], nil
}
