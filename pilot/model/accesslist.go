package model

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp/syntax"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// AccessList is our kind of that name: a gate of its own in front of workloads,
// which decides by one value of each request or connection. Of several every one
// has to let a request pass.
type AccessList struct {
	Meta
	// Selector is empty for every workload of the namespace (of the mesh in the root namespace).
	Selector map[string]string
	// Deny says that what is on the list is refused; otherwise all else is.
	Deny bool
	// Match is the key of package condition that gives the value, or AccessHost or
	// AccessPath.
	Match string
	// Form is how entries are compared with the value.
	Form AccessForm
	// Entries are what the object itself has on the list.
	Entries []string
	// AllowFirst and DenyFirst are looked at before the list, DenyFirst first.
	AllowFirst, DenyFirst []string
	// From says where more entries come from, nil for nowhere.
	From *AccessSource
	// FailOpen: before the first good list from From the object's own entries count
	// and nothing else is refused; without it all that only From could let pass is
	// refused, and with Deny everything.
	FailOpen bool
	Observe  bool
}

// Keys of AccessList.Match besides those of package condition.
const (
	AccessHost = "request.host"
	AccessPath = "request.path"
)

// AccessForm is how the entries of an AccessList are compared.
type AccessForm uint8

// The forms.
const (
	AccessStrings AccessForm = iota
	AccessStringsAnyCase
	AccessAddresses
	// AccessRegex are expressions of RE2 that have to match the whole value.
	AccessRegex
)

// AccessSource is where entries come from, one a line.
type AccessSource struct {
	// URL is http or https; File is a name relative to the mesh directory. One of them is set.
	URL, File string
	// CAFile has the authorities of the URL's server in PEM, empty for the system's.
	CAFile string
	// Refresh is how often it is looked at, Timeout how long one look may take.
	Refresh, Timeout time.Duration
	// MaxAge is how long the last good entries count while there are no newer ones,
	// 0 for ever.
	MaxAge time.Duration
}

// Fetched are the entries that came from the source of an AccessList.
type Fetched struct {
	Entries []string
	// Expired says that they are older than MaxAge: it is as if there were none yet.
	Expired bool
}

// Network reads an entry of AccessAddresses, an address or a CIDR block.
func Network(entry string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(entry); err == nil {
		if addr.Zone() != "" {
			return netip.Prefix{}, errors.New("an address with a zone")
		}
		return addr.Prefix(addr.BitLen())
	}
	return netip.ParsePrefix(entry)
}

// MaxEntries is how many entries a list may have. Texts without regard to case, and
// expressions, are tried one after the other; the others are looked up.
func MaxEntries(form AccessForm) int {
	if form == AccessStringsAnyCase || form == AccessRegex {
		return 1_000
	}
	return 10_000
}

// maxEntry is how long an entry may be, in bytes.
const maxEntry = 1024

// EntryFault says what is wrong with an entry, "" if nothing is, without a word of
// the entry itself.
func EntryFault(form AccessForm, entry string) string {
	switch {
	case entry == "":
		return "is empty"
	case len(entry) > maxEntry:
		return fmt.Sprintf("is longer than %d bytes", maxEntry)
	case !utf8.ValidString(entry) || strings.ContainsFunc(entry, unicode.IsControl):
		return "has bytes that are no text"
	case entry != strings.TrimSpace(entry):
		return "has spaces around it"
	}
	switch form {
	case AccessAddresses:
		if _, err := Network(entry); err != nil {
			return "is not an IP address or CIDR block"
		}
	case AccessRegex:
		size, err := programSize(entry)
		switch {
		case err != nil:
			return "is not a regular expression of RE2"
		case size > maxProgram:
			return "is a regular expression that is too large: an Envoy would refuse it"
		}
	case AccessStrings, AccessStringsAnyCase:
	}
	return ""
}

// maxProgram is how large the program of an expression may be: a quarter of what our
// Envoys take (re2.max_program_size.error_level), which is of a whole value and of what
// stands before it.
const maxProgram = 8192

// programSize estimates from above how many instructions RE2 needs, which works on
// bytes: at most four for each range of characters.
func programSize(expression string) (int, error) {
	tree, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return 0, err
	}
	program, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return 0, err
	}
	size := 0
	for i := range program.Inst {
		switch in := &program.Inst[i]; in.Op {
		case syntax.InstRune, syntax.InstRune1:
			size += 4 * max(1, len(in.Rune)/2)
		case syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			size += 12
		default:
			size++
		}
	}
	return size, nil
}

// URLProblem says what is wrong with a URL that pilot is to fetch from, "" if nothing is.
func URLProblem(text string) string {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Hostname() == "":
		return "is not an http or https URL"
	case u.User != nil:
		return "has a password in it: whoever reads the configuration reads it"
	case u.Fragment != "":
		return "has a fragment"
	}
	return ""
}
