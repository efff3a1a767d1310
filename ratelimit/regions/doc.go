// Package regions lets deployments in several places, each with counters of its own,
// keep one limit together.
//
// Each region has a part of every limit ([Division]) and counts it in its own store,
// without asking anybody. A [Store] stands before that store and has its interface. A
// region whose part is used up, or nearly, borrows hits from another: there they are
// held, beside what is used, from the moment they are granted until a window after
// they can last be used ([Lender]); here they are decided from, in memory, for a
// short time, and what is left of them is given back.
//
// Guarantee: each hit that passes anywhere is counted in exactly one part, when it
// passes or before, and the parts add up to the limit. So never more passes than the
// limit says in any stretch of time as long as its window: the overshoot is 0, however
// long the way between regions takes, while it is cut, and whatever their clocks say,
// for only lengths of time are compared, which go on while a machine is suspended. Two
// things undo it: a store whose clock is set forward by a window forgets its region's
// part, and a virtual machine that is paused and whose clock is set back by as long does
// not know that what it has in hand is over. A region that lies makes no other one let
// pass more than the limit. A region that is cut off has its part, and
// what it had borrowed until a few seconds later. What one region knows of what
// another has left is at most a quarter of that time old.
//
// Sliding limits are lent. Buckets (GCRA), places under way and what is held for a cost
// are divided and stay so: a hit of them cannot be used elsewhere later. What is counted
// by each replica for itself (mode local) is not divided.
//
// It does not see to it that regions have the same limits: two that differ keep each its
// part of its own.
package regions
