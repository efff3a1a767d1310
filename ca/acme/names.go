package acme

import (
	"fmt"
	"strings"
)

// pattern is a DNS name, or with a dot in front all names below it. It is valid by
// construction and in lower case.
type pattern string

type patterns []pattern

func parsePatterns(texts []string) (patterns, error) {
	var out patterns
	for _, t := range texts {
		if !isHostname(strings.TrimPrefix(t, ".")) {
			return nil, fmt.Errorf("%q: want a DNS name in lower case such as www.example.org, or .example.org for all below it", t)
		}
		out = append(out, pattern(t))
	}
	return out, nil
}

// allow tells whether a name is within one of the patterns. The wildcard *.NAME is
// if all names below NAME are.
func (p patterns) allow(name string) bool {
	if below, wild := strings.CutPrefix(name, "*"); wild {
		return isHostname(strings.TrimPrefix(below, ".")) && strings.HasPrefix(below, ".") && p.covers(pattern(below))
	}
	return isHostname(name) && p.covers(pattern(name))
}

// covers tells whether everything of another pattern is within one of these.
func (p patterns) covers(other pattern) bool {
	for _, own := range p {
		if own == other || own[0] == '.' && strings.HasSuffix(string(other), string(own)) {
			return true
		}
	}
	return false
}

// isHostname tells whether s is a host name of RFC 1123 section 2.1 in lower case,
// and no address: its last label is not a number.
func isHostname(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
		last = label
	}
	return strings.Trim(last, "0123456789") != ""
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
