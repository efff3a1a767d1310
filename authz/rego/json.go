package rego

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/util"
)

// maxNumber bounds the text of a number, in bytes, and maxExponent its
// exponent. A number such as 1e999999999 has few bytes, but some of Rego's
// arithmetic writes it out.
const (
	maxNumber   = 400
	maxExponent = 400
)

var errNumber = errors.New("a number is too large")

// wholeJSON parses one JSON value with nothing behind it.
func wholeJSON(b []byte) (ast.Value, error) {
	var x any
	if err := util.UnmarshalJSON(b, &x); err != nil {
		return nil, err
	}
	if !numbersFit(x) {
		return nil, errNumber
	}
	return ast.InterfaceToValue(x)
}

func numbersFit(x any) bool {
	switch x := x.(type) {
	case json.Number:
		return numberFits(string(x))
	case []any:
		for _, e := range x {
			if !numbersFit(e) {
				return false
			}
		}
	case map[string]any:
		for _, e := range x {
			if !numbersFit(e) {
				return false
			}
		}
	}
	return true
}

func numberFits(s string) bool {
	if len(s) > maxNumber {
		return false
	}
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		n, err := strconv.Atoi(s[i+1:])
		return err == nil && n >= -maxExponent && n <= maxExponent
	}
	return true
}
