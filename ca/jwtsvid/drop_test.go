package jwtsvid

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// Whichever key is dropped, one signs afterwards, and the set says that it changed.
func TestDrop(t *testing.T) {
	c := Config{Life: time.Hour, MaxTTL: time.Minute}
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	made := func(activated, retired time.Time) key {
		k, err := newKey(now.Add(-time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		k.Activated, k.Retired, k.Longest = activated, retired, time.Minute
		return k
	}
	old := made(now.Add(-2*time.Hour), now.Add(-time.Minute))
	active := made(now.Add(-time.Minute), time.Time{})
	next := made(time.Time{}, time.Time{})
	for _, tc := range []struct {
		what       string
		keys       []key
		drop, sign string
	}{
		{"one that signed", []key{old, active, next}, old.ID, active.ID},
		{"the one that signs", []key{old, active, next}, active.ID, next.ID},
		{"the next one", []key{old, active, next}, next.ID, active.ID},
		{"the only one", []key{active}, active.ID, ""},
	} {
		t.Run(tc.what, func(t *testing.T) {
			was := state{Version: 7, Keys: tc.keys}
			got, err := c.drop(was, tc.drop, now)
			if err != nil {
				t.Fatal(err)
			}
			signs := slices.DeleteFunc(slices.Clone(got.Keys), func(k key) bool { return k.Activated.IsZero() || !k.Retired.IsZero() })
			if len(signs) != 1 || tc.sign != "" && signs[0].ID != tc.sign {
				t.Errorf("these sign: %v", signs)
			}
			if slices.ContainsFunc(got.Keys, func(k key) bool { return k.ID == tc.drop }) || got.Version != 8 || !slices.Equal(got.Dropped, []string{tc.drop}) || len(was.Keys) != len(tc.keys) {
				t.Errorf("got %+v", got)
			}
		})
	}
	if _, err := c.drop(state{Keys: []key{active}}, "x", now); !errors.Is(err, ErrNoKey) {
		t.Errorf("got %v", err)
	}
}
