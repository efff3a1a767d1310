package ledger

import (
	"context"
	"slices"
	"sync"
)

// Memory is a store that forgets everything when the process ends. It is for
// tests and measurements only.
type Memory struct {
	mu     sync.Mutex
	certs  []Certificate
	tokens map[string]Token
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{tokens: make(map[string]Token)} }

// Record implements Certificates.
func (m *Memory) Record(_ context.Context, c Certificate) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.certs = append(m.certs, c)
	return nil
}

// Each implements Certificates.
func (m *Memory) Each(_ context.Context, f func(Certificate) error) error {
	m.mu.Lock()
	certs := slices.Clone(m.certs)
	m.mu.Unlock()
	for _, c := range certs {
		if err := f(c); err != nil {
			return err
		}
	}
	return nil
}

// AddToken implements Tokens.
func (m *Memory) AddToken(_ context.Context, t Token) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[t.ID] = t
	return nil
}

// Token implements Tokens.
func (m *Memory) Token(_ context.Context, id string) (Token, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tokens[id]
	if !ok {
		return Token{}, ErrNoToken
	}
	return t, nil
}

// RecordJoin implements Tokens.
func (m *Memory) RecordJoin(_ context.Context, tokenID string, c Certificate) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.tokens[tokenID]; !ok {
		return ErrNoToken
	}
	delete(m.tokens, tokenID)
	m.certs = append(m.certs, c)
	return nil
}

// Check implements Store.
func (*Memory) Check(context.Context) error { return nil }

// Close implements Store.
func (*Memory) Close() error { return nil }
