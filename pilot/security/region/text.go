package region

import (
	"encoding/binary"
	"errors"
	"fmt"
	"regexp/syntax"
	"slices"
	"unicode"
)

// errTooLarge says that an exact answer would take more than is allowed.
var errTooLarge = errors.New("too many cases to tell them apart exactly")

// maxStates bounds the states of the automaton that finds the cells of a text:
// some hundred bytes each.
const maxStates = 200_000

// cells finds the non-empty combinations of the expressions: for each the set
// of those that match, and a shortest text.
//
// All expressions run side by side as one automaton, whose states are the sets of
// places at which they can be. Two texts that lead to the same state are told apart
// by no expression, whatever follows; the walk over all states therefore meets every
// combination there is.
func (a *automaton) cells() ([]cell, error) {
	classes := a.classes()
	type visited struct {
		places []uint32
		text   string
	}
	start := a.closure(a.starts)
	queue := []visited{{start, ""}}
	seen := map[string]bool{key(start): true}
	found := map[string]bool{}
	var cells []cell
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		if k := key(a.matching(at.places)); !found[k] {
			found[k] = true
			cells = append(cells, cell{truth: a.accepted(at.places), witness: at.text})
		}
		for _, r := range classes {
			next := a.step(at.places, r)
			k := key(next)
			if seen[k] {
				continue
			}
			if len(seen) == maxStates {
				return nil, errTooLarge
			}
			seen[k] = true
			queue = append(queue, visited{next, at.text + string(r)})
		}
	}
	return cells, nil
}

// automaton is several expressions in one program: a place is an instruction of one
// of them, numbered through.
type automaton struct {
	insts  []syntax.Inst
	of     []int // the expression of each place
	starts []uint32
	n      int
	// closures are those of single places, as far as they were wanted.
	closures [][]uint32
}

func newAutomaton(expressions []string) (*automaton, error) {
	a := &automaton{n: len(expressions)}
	for i, e := range expressions {
		parsed, err := syntax.Parse(e, syntax.Perl|syntax.DotNL)
		if err != nil {
			return nil, fmt.Errorf("expression %q: %w", e, err)
		}
		prog, err := syntax.Compile(parsed.Simplify())
		if err != nil {
			return nil, fmt.Errorf("expression %q: %w", e, err)
		}
		offset := uint32(len(a.insts))
		for _, in := range prog.Inst {
			if in.Op == syntax.InstEmptyWidth {
				return nil, fmt.Errorf("expression %q: anchors and word boundaries are not looked into", e)
			}
			in.Out += offset
			if in.Op == syntax.InstAlt || in.Op == syntax.InstAltMatch {
				in.Arg += offset
			}
			a.insts = append(a.insts, in)
			a.of = append(a.of, i)
		}
		a.starts = append(a.starts, offset+uint32(prog.Start))
	}
	a.closures = make([][]uint32, len(a.insts))
	return a, nil
}

// Check says what of an expression is not looked into, nil if nothing is.
func Check(expression string) error {
	_, err := newAutomaton([]string{expression})
	return err
}

// closure follows what reads nothing, and keeps the places that read or match.
func (a *automaton) closure(from []uint32) []uint32 {
	var out []uint32
	for _, at := range from {
		if a.closures[at] == nil {
			a.closures[at] = a.follow(at)
		}
		out = append(out, a.closures[at]...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (a *automaton) follow(from uint32) []uint32 {
	out := []uint32{}
	seen := map[uint32]bool{}
	stack := []uint32{from}
	for len(stack) > 0 {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if seen[at] {
			continue
		}
		seen[at] = true
		switch in := a.insts[at]; in.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			stack = append(stack, in.Out, in.Arg)
		case syntax.InstCapture, syntax.InstNop:
			stack = append(stack, in.Out)
		case syntax.InstFail, syntax.InstEmptyWidth:
		case syntax.InstMatch, syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			out = append(out, at)
		}
	}
	return out
}

func (a *automaton) step(places []uint32, r rune) []uint32 {
	var next []uint32
	for _, at := range places {
		if in := &a.insts[at]; in.Op != syntax.InstMatch && in.MatchRune(r) {
			next = append(next, in.Out)
		}
	}
	return a.closure(next)
}

func (a *automaton) accepted(places []uint32) Set {
	out := newSet(a.n)
	for _, i := range a.matching(places) {
		out.add(int(i))
	}
	return out
}

// matching gives the expressions that match, in their order, which is that of places.
func (a *automaton) matching(places []uint32) []uint32 {
	var out []uint32
	for _, at := range places {
		if a.insts[at].Op == syntax.InstMatch {
			out = append(out, uint32(a.of[at]))
		}
	}
	return slices.Compact(out)
}

// classes gives one character of each kind that the expressions tell apart, a
// readable one where there is one.
func (a *automaton) classes() []rune {
	var kinds []*syntax.Inst
	seen := map[string]bool{}
	bounds := []rune{0, ' ', '!', '0', '0' + 10, 'a', 'z' + 1, 0x7f}
	for i := range a.insts {
		in := &a.insts[i]
		if in.Op != syntax.InstRune && in.Op != syntax.InstRune1 && in.Op != syntax.InstRuneAny && in.Op != syntax.InstRuneAnyNotNL {
			continue
		}
		k := kindOf(in)
		if seen[k] {
			continue
		}
		seen[k] = true
		kinds = append(kinds, in)
		bounds = append(bounds, runeBounds(in)...)
	}
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	best := map[string]rune{}
	var order []string
	for _, r := range bounds {
		if r > unicode.MaxRune {
			continue
		}
		signature := newSet(len(kinds))
		for i, in := range kinds {
			if in.MatchRune(r) {
				signature.add(i)
			}
		}
		k := setKey(signature)
		have, ok := best[k]
		if !ok {
			order = append(order, k)
		}
		if !ok || readable(r) > readable(have) {
			best[k] = r
		}
	}
	out := make([]rune, 0, len(order))
	for _, k := range order {
		out = append(out, best[k])
	}
	return out
}

// kindOf is the same for instructions that read the same.
func kindOf(in *syntax.Inst) string {
	out := binary.LittleEndian.AppendUint32([]byte{byte(in.Op)}, in.Arg)
	for _, r := range in.Rune {
		out = binary.LittleEndian.AppendUint32(out, uint32(r))
	}
	return string(out)
}

// runeBounds gives characters at which an instruction may begin or cease to match.
func runeBounds(in *syntax.Inst) []rune {
	if in.Op == syntax.InstRuneAny {
		return nil
	}
	if in.Op == syntax.InstRuneAnyNotNL {
		return []rune{'\n', '\n' + 1}
	}
	var out []rune
	if len(in.Rune) == 1 {
		r := in.Rune[0]
		out = append(out, r, r+1)
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			out = append(out, f, f+1)
		}
		return out
	}
	for i := 0; i+1 < len(in.Rune); i += 2 {
		out = append(out, in.Rune[i], in.Rune[i+1]+1)
	}
	return out
}

// readable prefers what looks well in an example.
func readable(r rune) int {
	switch {
	case r >= 'a' && r <= 'z':
		return 4
	case r >= '0' && r <= '9':
		return 3
	case r > ' ' && r < 0x7f:
		return 2
	case r >= ' ' && unicode.IsPrint(r):
		return 1
	}
	return 0
}

func key(places []uint32) string {
	out := make([]byte, 0, 4*len(places))
	for _, p := range places {
		out = binary.LittleEndian.AppendUint32(out, p)
	}
	return string(out)
}

func setKey(s Set) string {
	out := make([]byte, 0, 8*len(s))
	for _, w := range s {
		out = binary.LittleEndian.AppendUint64(out, w)
	}
	return string(out)
}
